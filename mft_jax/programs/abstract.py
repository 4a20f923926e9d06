"""The arguments of the programs as shapes, dtypes and shardings, to compile a program without arrays.

Each function returns exactly the shapes, dtypes and shardings that a run passes for the same sizes, so that the
program compiled ahead of time is the program that runs.
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
from mft_jax.models.attention_backend import attention_backend
from mft_jax.models.config import ModelConfig
from mft_jax.models.decoder import build
from mft_jax.models.lora import Adapter, init_society
from mft_jax.parallel.mesh import RULES, base_sharding, replicated, sharding, society_shardings
from mft_jax.programs.score import Texts
from mft_jax.programs.slots import Prompts, Settings, Slots, slot_shardings, zero_slots
from mft_jax.programs.train import Batch, Hyper, Signals, TrainState, init_state
from mft_jax.seeds import adapter_key


def abstract_base(model: ModelConfig, mesh: Mesh, dtype: jnp.dtype) -> nnx.State:
    """The weights of the frozen base, sharded over the mesh by `base_sharding`."""
    _, base = build(model, dtype, mesh=mesh)
    place = lambda path, leaf: _with_sharding(base_sharding(mesh, tuple(key.key for key in path), leaf.shape), leaf)
    placed = jax.tree_util.tree_map_with_path(place, nnx.to_pure_dict(base))
    nnx.replace_by_pure_dict(base, placed)
    return base


def abstract_adapters(
    model: ModelConfig, lora: LoraConfig, mesh: Mesh, adapters: int, dtype: str | None = None
) -> Adapter:
    """A stack of `adapters` LoRA adapters with their scales, sharded over the mesh by `society_shardings`.

    `dtype` is the dtype that `Society.stack` casts adapters to for sampling; None: the dtype that they are finetuned in.
    """
    weights = jax.eval_shape(functools.partial(init_society, model, lora, adapters=adapters), adapter_key(0))
    if dtype is not None:
        weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), weights)
    return _with_shardings(society_shardings(mesh, stack := Adapter(weights, _struct((adapters,), np.float32))), stack)


def abstract_slots(
    model: ModelConfig, mesh: Mesh, *, agents: int, rows: int, columns: int, new_tokens: int, dtype: str
) -> Slots:
    """The slots of `decode`: A = `agents`, B = `rows`, cache length S = `columns`, M = `new_tokens`; no log-probabilities."""
    make = functools.partial(
        zero_slots, model, attention_backend(mesh), agents, rows, columns, new_tokens, dtype, False
    )
    return _with_shardings(slot_shardings(mesh, model), jax.eval_shape(make))


def abstract_prompts(mesh: Mesh, *, agents: int, prompts: int, tokens: int) -> Prompts:
    """The prompts of `prefill`: C = P = `prompts` for each agent, padded to T = `tokens`."""
    per_row, per_token = _struct((agents, prompts), np.int32), _struct((agents, prompts, tokens), np.int32)
    given = Prompts(per_token, *(per_row,) * 5, _struct((agents, prompts, 2), np.uint32))
    return _with_shardings(sharding(mesh, "agent", "batch"), given)


def abstract_settings(mesh: Mesh, *, agents: int, stop_ids: int) -> Settings:
    """The settings of `decode`, with room for `stop_ids` stop token ids."""
    real, count = _struct((), np.float32), _struct((), np.int32)
    lists = _struct((stop_ids,), np.int32), _struct((agents, mesh.shape[RULES["batch"]]), np.int32)
    return _with_shardings(replicated(mesh), Settings(real, real, *lists, count, _struct((), np.bool_)))


def abstract_texts(mesh: Mesh, *, agents: int, rows: int, tokens: int) -> Texts:
    """The texts of `score`: B = `rows` for each agent, padded to T = `tokens`."""
    shape = (agents, rows, tokens)
    given = Texts(_struct(shape, np.int32), _struct((agents, rows), np.int32), _struct(shape, np.bool_))
    return _with_shardings(sharding(mesh, "agent", "batch"), given)


def abstract_training(
    mesh: Mesh, adapters: Adapter, *, rows: int, row_tokens: int, row_targets: int, sequences: int = 0
) -> tuple[TrainState, Batch, jax.ShapeDtypeStruct, Hyper]:
    """The arguments of the training step after the base: (state, batch, step index, hyperparameters).

    For each adapter the batch has B = `rows` rows of T = `row_tokens` tokens, with room for M = `row_targets` targets,
    and, if `sequences` is not 0, signals with room for S = `sequences` sequences.
    """
    count = adapters.scale.shape[0]
    state = jax.eval_shape(init_state, adapters.weights)
    per_token, targets = _struct((count, rows, row_tokens), np.int32), (count, rows, row_targets)
    batch = Batch(
        per_token,
        per_token,
        per_token,
        _struct(targets, np.int32),
        _struct(targets, np.int32),
        _struct(targets, np.float32),
        _abstract_signals(targets, sequences) if sequences else None,
    )
    axes = lambda leaf: ("agent", "batch", None) if len(leaf.shape) == 3 else ("agent", None)
    split = jax.tree.map(lambda leaf: sharding(mesh, *axes(leaf), shape=leaf.shape), batch)
    each, steps, one = _struct((count,), np.float32), _struct((count,), np.int32), _struct((), np.float32)
    hyper = Hyper(each, each, steps, steps, one, one, one, one, one)
    placed = _with_shardings(society_shardings(mesh, state), state), _with_shardings(split, batch)
    return *placed, _struct((), np.int32), hyper


def _abstract_signals(targets: tuple[int, int, int], sequences: int) -> Signals:
    known, of_sequences = _struct(targets, np.float32), _struct((targets[0], sequences), np.float32)
    return Signals(_struct(targets, np.int32), known, known, of_sequences, of_sequences)


def _struct(shape: tuple[int, ...], dtype: type) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _with_sharding(where: jax.sharding.Sharding, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _with_shardings(where: PyTree, tree: PyTree) -> PyTree:
    """`tree` with shardings: `where` is a tree of the same structure, or one sharding for all leaves."""
    if isinstance(where, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: _with_sharding(where, leaf), tree)
    return jax.tree.map(_with_sharding, where, tree)
