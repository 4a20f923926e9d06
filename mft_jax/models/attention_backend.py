"""How attention is computed on the devices of a mesh: by XLA on CPUs and GPUs, by Pallas kernels on TPUs.

A backend is a static part of the decoder. Its functions take the arrays of one agent; `jax.vmap` maps them over agents.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mft_jax.models.attention import attend, causal_attention, transposed, visible

Shape = tuple[int, int, int]

Cache = tuple[tuple[Float[Array, "A B K _ _"], Float[Array, "A B K S _"]], ...]  # the keys and values of each layer


class PromptWriter(Protocol):
    """Writes the keys and values of one layer and one agent into the first T columns of the cache, and returns the cache."""

    def __call__(
        self,
        cache: Cache,
        k: Float[Array, "C T K H"],
        v: Float[Array, "C T K H"],
        *,
        layer: Int[Array, ""],
        agent: Int[Array, ""],
        into: Int[Array, " P"],  # `into` and `source` as in `programs.slots.Prompts`
        source: Int[Array, " P"],
    ) -> Cache: ...


class AttentionBackend(Hashable, Protocol):
    """The attention of a decoder layer. The queries are already scaled; `window` and `softcap` are as in `attention.py`."""

    def causal(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        segment_ids: Int[Array, "B S"] | None,
        *,
        window: int | None,
        softcap: float | None,
    ) -> Float[Array, "B T N*H"]:
        """Attention of the last T of S tokens to all, causal within each segment; without `segment_ids` a row is one segment."""
        ...

    def decode(
        self,
        q: Float[Array, "B 1 N H"],
        k: Float[Array, "B 1 K H"],
        v: Float[Array, "B 1 K H"],
        keys: Float[Array, "B K _ _"],
        values: Float[Array, "B K S _"],
        position: Int[Array, " B"],
        *,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Float[Array, "B 1 N*H"], Float[Array, "B K _ _"], Float[Array, "B K S _"]]:
        """Writes `k` and `v` into column `position` of each row's cache, and attends to all columns up to this one.

        Returns (output, keys, values).
        """
        ...

    def to_cache(
        self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> tuple[Float[Array, "B K _ _"], Float[Array, "B K T _"]]:
        """Keys and values in the layout of the KV cache, with T columns."""
        ...

    def prompt_writer(self, prompts: int, tokens: int) -> PromptWriter | None:
        """What writes prompts into the cache if prefill should run agent by agent; None if it should run all together.

        `prompts` and `tokens` are the C and T of `programs.slots.Prompts`.
        """
        ...

    def on_a_device(self) -> "AttentionBackend":
        """The backend for a device's own arrays, in a function that runs on each device of the mesh."""
        ...

    def cache_shapes(self, kv_heads: int, columns: int, head_dim: int) -> tuple[Shape, Shape]:
        """The shapes of one row's keys and values in the cache: (K, H, S) or (K, S, H), and (K, S, H).

        A backend may put several heads side by side, (K / P, S, P * H), or pad H.
        """
        ...


@dataclasses.dataclass(frozen=True)
class XlaAttention:
    """The functions of `attention.py`. The cache has transposed keys, [B, K, H, S]."""

    merges_agents: bool = False  # whether decoding computes all agents' rows as one batch; only on one device

    def causal(self, q, k, v, segment_ids, *, window, softcap):
        segments = jnp.zeros(k.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        return _join_heads(causal_attention(q, *transposed(k, v), segments, window=window, softcap=softcap))

    def decode(self, q, k, v, keys, values, position, *, window, softcap):
        if self.merges_agents:
            return _decode_agents_as_rows(window, softcap)(q, k, v, keys, values, position)
        return _decode(q, k, v, keys, values, position, window=window, softcap=softcap)

    def to_cache(self, k, v):
        return transposed(k, v)

    def prompt_writer(self, prompts, tokens):
        return None

    def on_a_device(self):
        return self

    def cache_shapes(self, kv_heads, columns, head_dim):
        return (kv_heads, head_dim, columns), (kv_heads, columns, head_dim)


def attention_backend(mesh: Mesh | None) -> AttentionBackend:
    """The fastest backend for the devices of the mesh; None: the default device of the host."""
    if mesh is None or mesh.devices.flat[0].platform != "tpu":
        return XlaAttention(merges_agents=mesh is None or mesh.size == 1)
    from mft_jax.models.tpu_attention import TpuAttention  # the import of Pallas takes half a second

    return TpuAttention(mesh)


def _decode(q, k, v, keys, values, position, *, window, softcap):
    """`AttentionBackend.decode` by XLA."""
    k, v = transposed(k, v)
    keys = _with_column(keys, k.astype(keys.dtype), position, axis=2)
    values = _with_column(values, v.astype(values.dtype), position, axis=1)
    mask = visible(position[:, None], jnp.arange(values.shape[2]), window)[:, None]
    return _join_heads(attend(q, keys, values, mask, softcap)), keys, values


@functools.cache  # one for all layers
def _decode_agents_as_rows(window: int | None, softcap: float | None) -> Callable[..., tuple[Array, Array, Array]]:
    """`_decode` of arrays [B, ...], which `jax.vmap` over A agents calls once with [A * B, ...].

    XLA divides the work on the leading axis among a CPU's cores: of three agents one core would get two, the other one.
    """
    own = functools.partial(_decode, window=window, softcap=softcap)
    merged = jax.custom_batching.custom_vmap(own)

    @merged.def_vmap
    def of_all_agents(
        agents: int, mapped: Sequence[bool], *arrays: Array
    ) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        assert all(mapped), "every agent has rows of its own"
        results = own(*(x.reshape(-1, *x.shape[2:]) for x in arrays))
        return tuple(x.reshape(agents, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return merged


def _join_heads(output: Float[Array, "B T N H"]) -> Float[Array, "B T N*H"]:
    return output.reshape(*output.shape[:2], -1)


def _with_column(cache: Float[Array, "B K _ _"], new: Float[Array, "B K _ _"], position: Array, axis: int) -> Array:
    """Writes `new`, of size 1 along `axis` of one row, into the cache of each row at its own `position`, in place."""
    update = lambda cache, new, at: jax.lax.dynamic_update_slice_in_dim(cache, new, at, axis)
    return jax.vmap(update)(cache, new, position)
