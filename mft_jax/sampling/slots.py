"""What is kept on the devices while rows are decoded: a grid of slots [A, B], each one sequence with its KV cache."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.models.config import ModelConfig
from mft_jax.parallel.mesh import RULES, replicated, sharding


class Slots(NamedTuple):
    """Column s of a row's cache holds its token s, whatever its neighbours do: sums run in the same order."""

    keys: tuple[Float[Array, "A B K H S"], ...]  # a leaf a layer, so that a step writes in place
    values: tuple[Float[Array, "A B K S H"], ...]
    token: Int[Array, "A B"]  # the newest token, not yet in the cache
    position: Int[Array, "A B"]  # the column it will be written to
    active: Bool[Array, "A B"]
    count: Int[Array, "A B"]  # new tokens so far
    limit: Int[Array, "A B"]  # new tokens at most
    seed: UInt32[Array, "A B 2"]  # the row's random key
    output: Int[Array, "A B M"]  # new tokens, the stop token included


class Settings(NamedTuple):
    """Sampling settings as arrays: another value is another input, never another program."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    stop_ids: Int[Array, " E"]  # padded with -1
    pending: Int[Array, " A"]  # prompts that wait for a free slot
    prefill_rows: Int[Array, ""]  # a dispatch ends once an agent can refill that many rows
    steps: Int[Array, ""]  # a dispatch ends after that many tokens
    long: Bool[Array, ""]  # rows are longer than longrope's original context (`ModelConfig.long_after`)


class View(NamedTuple):
    """The part of the slots that every host reads between dispatches."""

    active: Bool[Array, "A B"]
    count: Int[Array, "A B"]
    output: Int[Array, "A B M"]


def bucket(size: int, smallest: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: two per octave, so that few shapes are ever compiled."""
    power = smallest
    while power < size:
        if power + power // 2 >= size:
            return power + power // 2
        power *= 2
    return power


def slot_shardings(mesh: Mesh, config: ModelConfig) -> Any:
    """Every leaf over agents and rows; the cache also over kv heads, as the projections that fill it are."""
    rows = sharding(mesh, "agent", "batch")
    last = sharding(mesh, "agent", "batch", None)
    kv_heads = "kv_heads" if config.kv_heads % mesh.shape[RULES["kv_heads"]] == 0 else None  # one head is never split
    cache = sharding(mesh, "agent", "batch", kv_heads)
    layers = (cache,) * config.layers
    leaves: tuple[Any, ...] = (layers, layers, rows, rows, rows, rows, rows, last, last)
    return Slots(*leaves)


def view_shardings(mesh: Mesh) -> Any:
    leaves: tuple[Any, ...] = (replicated(mesh),) * 3
    return View(*leaves)


@functools.lru_cache(maxsize=8)
def _maker(config: ModelConfig, mesh: Mesh, shape: tuple[int, int, int, int], dtype: str):
    agents, rows, columns, new_tokens = shape

    def make() -> Slots:
        whole = lambda *last, kind=jnp.int32: jnp.zeros((agents, rows, *last), kind)
        keys = tuple(whole(config.kv_heads, config.head_dim, columns, kind=dtype) for _ in range(config.layers))
        values = tuple(whole(config.kv_heads, columns, config.head_dim, kind=dtype) for _ in range(config.layers))
        seed = whole(2, kind=jnp.uint32)
        return Slots(keys, values, whole(), whole(), whole(kind=bool), whole(), whole(), seed, whole(new_tokens))

    return jax.jit(make, out_shardings=slot_shardings(mesh, config))


def empty_slots(
    config: ModelConfig, mesh: Mesh, agents: int, rows: int, columns: int, new_tokens: int, dtype: str
) -> Slots:
    """Free slots: A agents x B rows, S columns of cache and room for `new_tokens` new tokens each."""
    return _maker(config, mesh, (agents, rows, columns, new_tokens), dtype)()
