"""Maps a function of one agent's adapter and rows over all agents with `jax.vmap`. The base weights are not mapped."""

from collections.abc import Callable
from typing import Any

import jax

from mft_jax.models.lora import Adapter


def over_agents(function: Callable[..., Any], adapters: Adapter | None, *rows: Any) -> Any:
    """Calls `function(adapter, *rows)` for every agent and stacks the results on a leading agent axis.

    The leading axis of every array in `rows` is the agent axis. With `adapters` None, each agent is the base model and
    `function` gets None as its adapter.
    """
    if adapters is None:
        return jax.vmap(lambda *own: function(None, *own))(*rows)
    return jax.vmap(function)(adapters, *rows)
