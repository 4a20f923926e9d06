"""What is kept on the devices while rows are decoded: a grid of slots [A, B], each one sequence with its KV cache."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.models.config import ModelConfig
from mft_jax.parallel.mesh import RULES, replicated, sharding
from mft_jax.programs.arrays import AnyArray


class Slots(NamedTuple):
    """Column s of a row's cache holds its token s, whatever the other rows do: its sums always run in the same order."""

    keys: tuple[Float[Array, "A B K H S"], ...]  # a leaf for each layer, so that a step updates them in place
    values: tuple[Float[Array, "A B K S H"], ...]
    token: Int[Array, "A B"]  # the newest token, not yet in the cache
    position: Int[Array, "A B"]  # the column that it will be written to
    active: Bool[Array, "A B"]
    count: Int[Array, "A B"]  # new tokens so far
    limit: Int[Array, "A B"]  # new tokens at most
    key: UInt32[Array, "A B 2"]  # the row's random key
    output: Int[Array, "A B M"]  # new tokens, the stop token included
    log_probs: Float[Array, "A B M"]  # of the new tokens, in nats; M is 0 where nobody asked for them
    failed: Bool[Array, "A B"]  # ended because its logits were not finite


class Settings(NamedTuple):
    """Sampling settings as arrays: another value is another input, never another program."""

    temperature: Float[AnyArray, ""]
    top_p: Float[AnyArray, ""]
    stop_ids: Int[AnyArray, " E"]  # padded with -1
    pending: Int[AnyArray, " A"]  # prompts that wait for a free slot
    prefill_rows: Int[AnyArray, ""]  # a dispatch ends as soon as an agent can refill that many rows
    steps: Int[AnyArray, ""]  # a dispatch ends after that many tokens
    long: Bool[AnyArray, ""]  # rows are longer than longrope's original context (`ModelConfig.long_after`)


class View(NamedTuple):
    """The part of the slots that every host reads between dispatches."""

    active: Bool[Array, "A B"]
    count: Int[Array, "A B"]
    output: Int[Array, "A B M"]
    log_probs: Float[Array, "A B M"]
    failed: Bool[Array, "A B"]


class Prompts(NamedTuple):
    """Prompts for free slots: up to P of each agent, padded on the right to T tokens."""

    tokens: Int[AnyArray, "A P T"]
    lengths: Int[AnyArray, "A P"]  # tokens without the padding
    into: Int[AnyArray, "A P"]  # the slot; B, one past the last slot, means that there is no prompt
    counts: Int[AnyArray, "A P"]  # how many of the last tokens are new ones, of an answer that was begun before
    limits: Int[AnyArray, "A P"]
    keys: UInt32[AnyArray, "A P 2"]


def bucket(size: int, smallest: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: two per octave, so that few shapes are ever compiled."""
    power = smallest
    while power < size:
        if power + power // 2 >= size:
            return power + power // 2
        power *= 2
    return power


def slot_shardings(mesh: Mesh, config: ModelConfig) -> Any:
    """Every leaf is split over agents and rows; the cache also over kv heads, as the projections that fill it are."""
    rows: Any = sharding(mesh, "agent", "batch")
    last: Any = sharding(mesh, "agent", "batch", None)
    kv_heads = "kv_heads" if config.kv_heads % mesh.shape[RULES["kv_heads"]] == 0 else None  # one head is never split
    layers: Any = (sharding(mesh, "agent", "batch", kv_heads),) * config.layers
    return Slots(
        keys=layers, values=layers, token=rows, position=rows, active=rows, count=rows, limit=rows, key=last,
        output=last, log_probs=last, failed=rows,
    )  # fmt: skip


def view_shardings(mesh: Mesh) -> Any:
    leaves: tuple[Any, ...] = (replicated(mesh),) * len(View._fields)
    return View(*leaves)


def empty_slots(
    config: ModelConfig,
    mesh: Mesh,
    *,
    agents: int,
    rows: int,
    columns: int,
    new_tokens: int,
    dtype: str,
    log_probs: bool = False,
) -> Slots:
    """Free slots: A agents x B rows, S columns of cache and room for `new_tokens` new tokens each."""
    return _allocator(config, mesh, agents, rows, columns, new_tokens, dtype, log_probs)()


@functools.lru_cache(maxsize=8)
def _allocator(config: ModelConfig, mesh: Mesh, *size: Any):
    return jax.jit(functools.partial(zero_slots, config, *size), out_shardings=slot_shardings(mesh, config))


def zero_slots(
    config: ModelConfig, agents: int, rows: int, columns: int, new_tokens: int, dtype: str, log_probs: bool
) -> Slots:
    """The slots as zeros, to be allocated or, under jax.eval_shape, to be planned with."""
    whole = lambda *last, kind=jnp.int32: jnp.zeros((agents, rows, *last), kind)
    return Slots(
        keys=tuple(whole(config.kv_heads, config.head_dim, columns, kind=dtype) for _ in range(config.layers)),
        values=tuple(whole(config.kv_heads, columns, config.head_dim, kind=dtype) for _ in range(config.layers)),
        token=whole(),
        position=whole(),
        active=whole(kind=bool),
        count=whole(),
        limit=whole(),
        key=whole(2, kind=jnp.uint32),
        output=whole(new_tokens),
        log_probs=whole(new_tokens if log_probs else 0, kind=jnp.float32),
        failed=whole(kind=bool),
    )
