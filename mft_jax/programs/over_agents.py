"""Maps a function of one agent's adapter and rows over all agents with `jax.vmap`. The base weights are not mapped."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, Unstacked
from mft_jax.parallel.mesh import RULES


def over_agents(
    mesh: Mesh | None, function: Callable[..., Any], adapters: Adapter | Unstacked | None, *rows: Any
) -> Any:
    """Calls `function(adapter, *rows)` for every agent and stacks the results on a leading agent axis.

    The leading axis of every array in `rows` is the agent axis. With `adapters` None, each agent is the base model and
    `function` gets None as its adapter.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if adapters is None:
        return map_agents(mesh, count, lambda *own: function(None, *own))(*rows)
    return map_agents(mesh, count, function)(adapters, *rows)


def for_sampling(model: Decoder, adapters: Adapter | None) -> Adapter | Unstacked | None:
    """All agents' adapters in the form in which sampling reads them fastest. The leading axis of all arrays is the agent axis.

    The outputs of fused projections are in the order of the base. On CPUs they are unstacked, unless layers are scanned.
    Other devices slice the stack while they read it, and copying it first would cost more.
    """
    if adapters is None:
        return None
    grouped = adapters.grouped(model.config)
    platform = jax.default_backend() if model.mesh is None else model.mesh.devices.flat[0].platform
    stacked = platform != "cpu" or model.scan_layers
    return grouped if stacked else jax.vmap(Adapter.unstack)(grouped)


def map_agents(mesh: Mesh | None, count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap` of `function` over `count` agents, which are sharded over the mesh's agent axis where that divides them.

    Sharding constraints inside `function`, which know nothing of agents, then hold for each agent.
    """
    axis = RULES["agent"]
    split = mesh is not None and mesh.size > 1 and count % mesh.shape[axis] == 0
    return jax.vmap(function, spmd_axis_name=axis if split else None)
