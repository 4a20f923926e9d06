"""The arguments of the programs as shapes, types and shardings, for compilers that have no arrays.

Every function gives exactly what a run would pass for these sizes, so that what is planned is what runs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from mft_jax.config import LoraConfig
from mft_jax.models.config import ModelConfig
from mft_jax.models.decoder import build
from mft_jax.models.lora import Adapter, init_society
from mft_jax.parallel.mesh import base_sharding, replicated, sharding, society_shardings
from mft_jax.programs.score import Texts
from mft_jax.programs.slots import Prompts, Settings, Slots, slot_shardings, zero_slots
from mft_jax.programs.train import Batch, Hyper, TrainState, init_state
from mft_jax.seeds import adapter_key


def abstract_base(model: ModelConfig, mesh: Mesh, dtype: jnp.dtype) -> nnx.State:
    """The frozen base's weights, split as the mesh says."""
    _, base = build(model, dtype)
    place = lambda path, leaf: _with(base_sharding(mesh, tuple(key.key for key in path), leaf.shape), leaf)
    placed = jax.tree_util.tree_map_with_path(place, nnx.to_pure_dict(base))
    nnx.replace_by_pure_dict(base, placed)
    return base


def abstract_adapters(model: ModelConfig, lora: LoraConfig, mesh: Mesh, adapters: int) -> Adapter:
    """A stack of `adapters` adapters."""
    weights = jax.eval_shape(functools.partial(init_society, model, lora, adapters=adapters), adapter_key(0))
    return _placed(society_shardings(mesh, stack := Adapter(weights, _shape((adapters,), np.float32))), stack)


def abstract_slots(
    model: ModelConfig, mesh: Mesh, *, agents: int, rows: int, columns: int, new_tokens: int, dtype: str
) -> Slots:
    """Decode's slots: A agents x B rows, S columns of cache, M new tokens."""
    make = functools.partial(zero_slots, model, agents, rows, columns, new_tokens, dtype, False)
    return _placed(slot_shardings(mesh, model), jax.eval_shape(make))


def abstract_prompts(mesh: Mesh, *, agents: int, prompts: int, tokens: int) -> Prompts:
    """Prefill's prompts: P of each agent, T tokens long."""
    number, whole = _shape((agents, prompts), np.int32), _shape((agents, prompts, tokens), np.int32)
    given = Prompts(whole, number, number, number, number, _shape((agents, prompts, 2), np.uint32))
    return _placed(sharding(mesh, "agent", "batch"), given)


def abstract_settings(mesh: Mesh, *, agents: int, stop_ids: int) -> Settings:
    """Decode's settings, with room for `stop_ids` stop tokens."""
    real, count = _shape((), np.float32), _shape((), np.int32)
    lists = _shape((stop_ids,), np.int32), _shape((agents,), np.int32)
    return _placed(replicated(mesh), Settings(real, real, *lists, count, count, _shape((), np.bool_)))


def abstract_texts(mesh: Mesh, *, agents: int, rows: int, tokens: int) -> Texts:
    """Score's texts: B of each agent, T tokens long."""
    whole = (agents, rows, tokens)
    given = Texts(_shape(whole, np.int32), _shape((agents, rows), np.int32), _shape(whole, np.bool_))
    return _placed(sharding(mesh, "agent", "batch"), given)


def abstract_training(
    mesh: Mesh, adapters: Adapter, *, rows: int, row_tokens: int, row_targets: int
) -> tuple[TrainState, Batch, jax.ShapeDtypeStruct, Hyper]:
    """(state, batch, index, hyper) of the train step: B rows of T tokens with room for M targets, for each adapter."""
    count = adapters.scale.shape[0]
    state = jax.eval_shape(init_state, adapters.weights)
    whole, targets = _shape((count, rows, row_tokens), np.int32), (count, rows, row_targets)
    batch = Batch(
        whole, whole, whole, _shape(targets, np.int32), _shape(targets, np.int32), _shape(targets, np.float32)
    )
    split = jax.tree.map(lambda leaf: sharding(mesh, "agent", "batch", None, shape=leaf.shape), batch)
    each, steps, one = _shape((count,), np.float32), _shape((count,), np.int32), _shape((), np.float32)
    hyper = Hyper(each, each, steps, steps, one, one, one, one, one)
    placed = _placed(society_shardings(mesh, state), state), _placed(split, batch)
    return *placed, _shape((), np.int32), hyper


def _shape(shape: tuple[int, ...], dtype: type) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _with(where: jax.sharding.Sharding, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _placed(where: PyTree, tree: PyTree) -> PyTree:
    """`tree` with the shardings of `where`, a tree of the same structure or one sharding for all leaves."""
    if isinstance(where, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: _with(where, leaf), tree)
    return jax.tree.map(_with, where, tree)
