"""The decoding state on the devices: a grid of slots [A, B]. Each slot is one sequence with its KV cache."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.models.attention_backend import AttentionBackend, attention_backend
from mft_jax.models.config import ModelConfig
from mft_jax.parallel.mesh import RULES, replicated, sharding
from mft_jax.programs.arrays import AnyArray


class Slots(NamedTuple):
    """The state of every slot.

    Column s of a row's cache always belongs to token s of that row, whatever the other rows contain. Attention therefore
    sums over a row's tokens in the same order in every batch.
    """

    # One array per layer, which XLA can update in place. For the last axes see `AttentionBackend.cache_shapes`.
    keys: tuple[Float[Array, "A B K _ _"], ...]
    values: tuple[Float[Array, "A B K S _"], ...]
    token: Int[Array, "A B"]  # the newest token; its keys and values are not in the cache yet
    position: Int[Array, "A B"]  # the cache column of the newest token
    active: Bool[Array, "A B"]  # is being decoded
    count: Int[Array, "A B"]  # new tokens so far
    limit: Int[Array, "A B"]  # maximum number of new tokens
    key: UInt32[Array, "A B 2"]  # the row's random key
    output: Int[Array, "A B M"]  # new tokens, the stop token included
    log_probs: Float[Array, "A B M"]  # of the new tokens, in nats; M is 0 if not requested
    failed: Bool[Array, "A B"]  # stopped because its logits were NaN or infinite


class Settings(NamedTuple):
    """Sampling settings as arrays, so that new values need no recompilation."""

    temperature: Float[AnyArray, ""]
    top_p: Float[AnyArray, ""]
    stop_ids: Int[AnyArray, " E"]  # padded with -1
    refill: Int[AnyArray, "A D"]  # `decode` ends when each device of the data axis has so many free slots; 0: never
    steps: Int[AnyArray, ""]  # a call of `decode` ends after this many tokens per row
    long: Bool[AnyArray, ""]  # rows are longer than longrope's original context (`ModelConfig.long_after`)


class View(NamedTuple):
    """The part of the slots that the host reads after each call of `decode`; fields as in `Slots`."""

    active: Bool[Array, "A B"]
    count: Int[Array, "A B"]
    output: Int[Array, "A B M"]
    log_probs: Float[Array, "A B M"]
    failed: Bool[Array, "A B"]
    steps: Int[Array, ""]  # tokens per row that the call decoded


class Prompts(NamedTuple):
    """Prompts for up to P free slots of each agent: C different ones, padded on the right to T tokens.

    If all prompts of an agent begin with the same prefix, `tokens` are those after it.
    """

    tokens: Int[AnyArray, "A C T"]
    lengths: Int[AnyArray, "A C"]  # number of tokens without padding, at least 1
    source: Int[AnyArray, "A P"]  # index of the slot's prompt in `tokens`; not used if C = P
    into: Int[AnyArray, "A P"]  # index of the slot; B, one past the last slot: no prompt in this place
    counts: Int[AnyArray, "A P"]  # how many of the last tokens are already part of the answer (resumed rows)
    limits: Int[AnyArray, "A P"]  # maximum number of new tokens, those in `counts` included
    keys: UInt32[AnyArray, "A P 2"]  # random keys


# The keys and values of each layer, [A, S, K, H], for a prefix of S tokens that all prompts of an agent share.
Prefix = tuple[tuple[Float[Array, "A S K H"], Float[Array, "A S K H"]], ...]


def bucket(size: int, smallest: int = 16) -> int:
    """Rounds `size` up to one of 16, 24, 32, 48, 64, 96, ..., so that few shapes are compiled.

    The sizes are `smallest` times 1, 1.5, 2, 3, 4, 6, ...
    """
    power = smallest
    while power < size:
        if power + power // 2 >= size:
            return power + power // 2
        power *= 2
    return power


def slot_shardings(mesh: Mesh, config: ModelConfig) -> Any:
    """Shardings of `Slots`: every array over agents and rows; the cache also over kv heads, like the k and v projections."""
    rows: Any = sharding(mesh, "agent", "batch")
    last: Any = sharding(mesh, "agent", "batch", None)
    kv_heads = "kv_heads" if config.kv_heads % mesh.shape[RULES["kv_heads"]] == 0 else None  # a head is never split
    layers: Any = (sharding(mesh, "agent", "batch", kv_heads),) * config.layers
    return Slots(
        keys=layers, values=layers, token=rows, position=rows, active=rows, count=rows, limit=rows, key=last,
        output=last, log_probs=last, failed=rows,
    )  # fmt: skip


def prefix_shardings(mesh: Mesh, config: ModelConfig) -> Any:
    """Shardings of `Prefix`: over agents, and over kv heads like the cache."""
    kv_heads = "kv_heads" if config.kv_heads % mesh.shape[RULES["kv_heads"]] == 0 else None
    return ((sharding(mesh, "agent", None, kv_heads),) * 2,) * config.layers


def view_shardings(mesh: Mesh) -> Any:
    """Shardings of `View`: replicated, so that every host can read all of it."""
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
    backend: AttentionBackend | None = None,
) -> Slots:
    """Allocates free slots on the mesh: A = `agents`, B = `rows`, cache length S = `columns`, M = `new_tokens`.

    `backend` decides on the layout of the cache (None: the fastest one for the mesh).
    """
    backend = backend or attention_backend(mesh)
    return _compile_allocator(config, mesh, backend, agents, rows, columns, new_tokens, dtype, log_probs)()


@functools.lru_cache(maxsize=8)
def _compile_allocator(config: ModelConfig, mesh: Mesh, backend: AttentionBackend, *size: Any):
    return jax.jit(functools.partial(zero_slots, config, backend, *size), out_shardings=slot_shardings(mesh, config))


def zero_slots(
    config: ModelConfig,
    backend: AttentionBackend,
    agents: int,
    rows: int,
    columns: int,
    new_tokens: int,
    dtype: str,
    log_probs: bool,
) -> Slots:
    """Slots of zeros. Under jax.eval_shape this gives the shapes and dtypes only."""
    zeros = lambda *last, kind=jnp.int32: jnp.zeros((agents, rows, *last), kind)
    keys, values = backend.cache_shapes(config.kv_heads, columns, config.head_dim)
    return Slots(
        keys=tuple(zeros(*keys, kind=dtype) for _ in range(config.layers)),
        values=tuple(zeros(*values, kind=dtype) for _ in range(config.layers)),
        token=zeros(),
        position=zeros(),
        active=zeros(kind=bool),
        count=zeros(),
        limit=zeros(),
        key=zeros(2, kind=jnp.uint32),
        output=zeros(new_tokens),
        log_probs=zeros(new_tokens if log_probs else 0, kind=jnp.float32),
        failed=zeros(kind=bool),
    )
