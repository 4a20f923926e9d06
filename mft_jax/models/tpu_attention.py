"""Attention on TPUs by Pallas kernels, as an `AttentionBackend`."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mft_jax.models.decode_kernel import attend_and_write
from mft_jax.models.prefill_kernel import write_prompts
from mft_jax.parallel.mesh import RULES, own_rows, sharding

_LANES = 128  # the number of lanes of a TPU's vector unit
_SPLASH_BLOCKS = (512, 256, 128)


@dataclasses.dataclass(frozen=True)
class TpuAttention:
    """Splash attention (JAX's flash attention for TPUs) for prompts and dialogues, and `decode_kernel` for decoding.

    XLA cannot partition a kernel, so each device runs it on its own rows and heads. Heads that the mesh's model axis does
    not divide are not split; then every device of this axis computes all of them. `interpret` runs the kernels on any
    platform, slowly, for tests.

    Prefill runs agent by agent if the prompts of one have at least `apart_from` tokens on a device and the mesh does not split
    agents. This takes a fifth of the memory and about as long, or less. With fewer tokens it would be slower, because each
    agent's pass copies the weights of every layer (`Decoder._scan`); docs/performance.md has figures.
    """

    mesh: Mesh
    interpret: bool = False
    apart_from: int = 4096
    split: bool = True  # False: the arrays are a device's own already

    def causal(self, q, k, v, segment_ids, *, window, softcap):
        heads, rows = self._specs(k)
        function = functools.partial(_splash_rows, window=window, softcap=softcap, interpret=self.interpret)
        arrays, specs = (q, k, v), (heads, heads, heads)
        if segment_ids is not None:
            arrays, specs = (*arrays, segment_ids), (*specs, rows)
        return self._on_each_device(function, specs, PartitionSpec(heads[0], None, heads[2]))(*arrays)

    def decode(self, q, k, v, keys, values, position, *, window, softcap):
        heads, rows = self._specs(k)
        cache = PartitionSpec(heads[0], heads[2], None, None)
        function = functools.partial(_decode_rows, window=window, softcap=softcap, interpret=self.interpret)
        arguments = (q, k.astype(keys.dtype), v.astype(values.dtype), keys, values, position)
        specs = (heads, heads, heads, cache, cache, PartitionSpec(rows[0]))
        out = PartitionSpec(heads[0], None, heads[2])
        return self._on_each_device(function, specs, (out, cache, cache))(*arguments)

    def to_cache(self, k, v):
        shared, size = self._in_lanes(*k.shape[2:])
        return tuple(_pack_heads(x, shared, size).transpose(0, 2, 1, 3) for x in (k, v))

    def prompt_writer(self, prompts, tokens):
        own_tokens = prompts // self.mesh.shape[RULES["batch"]] * tokens
        apart = self.mesh.shape[RULES["agent"]] == 1 and own_tokens >= self.apart_from
        return self._write_prompts if apart else None

    def _write_prompts(self, cache, k, v, *, layer, agent, into, source):
        heads, rows = self._specs(k)
        new, number = PartitionSpec(heads[0], heads[2], None, None), PartitionSpec()
        at = PartitionSpec(None, *new)

        def write_own(arrays: tuple[Array, ...], new: tuple[Array, ...], *where: Array) -> tuple[Array, ...]:
            *numbers, into, source = where
            own = own_rows(into, arrays[0].shape[1]), own_rows(source, new[0].shape[0])
            return write_prompts(arrays, new, *numbers, *own, interpret=self.interpret)

        arrays = jax.tree.leaves(cache)
        specs = ((at,) * len(arrays), (new, new), number, number, PartitionSpec(rows[0]), PartitionSpec(rows[0]))
        new_keys_values = tuple(x.astype(arrays[0].dtype) for x in self.to_cache(k, v))
        written = self._on_each_device(write_own, specs, specs[0])(
            tuple(arrays), new_keys_values, layer, agent, into, source
        )
        return jax.tree.unflatten(jax.tree.structure(cache), written)

    def on_a_device(self):
        return dataclasses.replace(self, split=False)

    def cache_shapes(self, kv_heads, columns, head_dim):
        shared, size = self._in_lanes(kv_heads, head_dim)
        return ((kv_heads // shared, columns, size),) * 2

    def _in_lanes(self, kv_heads: int, head_dim: int) -> tuple[int, int]:
        """How many kv heads lie side by side in the last axis of the cache, and the size of this axis.

        It is a multiple of the lanes, so that XLA stores the cache as the kernel reads it; otherwise it would copy all of it in
        every call. Heads of 64 or 96 elements need no padding if 2 or 4 of them lie side by side on one device.
        """
        shared = _LANES // math.gcd(head_dim, _LANES)
        model = self.mesh.shape[RULES["kv_heads"]]
        own = kv_heads // model if kv_heads % model == 0 else kv_heads
        return (shared, shared * head_dim) if own % shared == 0 else (1, -(-head_dim // _LANES) * _LANES)

    def _specs(self, k: Float[Array, "B T K H"]) -> tuple[PartitionSpec, PartitionSpec]:
        """The partitions of [B, T, heads, H], the same for queries, keys and values, and of [B, T]."""
        heads = sharding(self.mesh, "batch", None, "kv_heads", None, shape=k.shape).spec
        return heads, PartitionSpec(heads[0], None)

    def _on_each_device(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        if not self.split:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _splash_rows(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B S"] | None = None,
    *,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "B T N*H"]:
    """Splash attention of the last T of S tokens, padded to multiples of its block sizes.

    Padding comes last, so no real token sees it.

    The heads are joined here, on each device. If that were left to XLA, it would copy the weights of the output
    projection to another layout instead, in each step.
    """
    time, before = q.shape[1], k.shape[1] - q.shape[1]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), *((0, 0),) * (x.ndim - 2)))
    arrays = [pad(x).transpose(0, 2, 1, 3) for x in (q, k, v)]
    kernel = _splash_kernel(q.shape[2], arrays[0].shape[2], arrays[1].shape[2], before, window, softcap, interpret)
    if segment_ids is None:
        output = jax.vmap(kernel)(*arrays)
    else:
        output = jax.vmap(kernel)(*arrays, splash.SegmentIds(pad(segment_ids[:, before:]), pad(segment_ids)))
    return output.transpose(0, 2, 1, 3)[:, :time].reshape(*q.shape[:2], -1)


def _splash_kernel(
    heads: int, queries: int, keys: int, before: int, window: int | None, softcap: float | None, interpret: bool
) -> Any:
    """The kernel for one row, whose first query is that of token `before`.

    Its mask is computed inside the kernel, and blocks that are masked completely are skipped.
    """
    shape = (queries, keys)
    causal = splash.CausalMask(shape, before)
    mask = causal if window is None else causal & splash.LocalMask(shape, (window - 1, 0), before)
    q, kv = (next(size for size in _SPLASH_BLOCKS if tokens % size == 0) for tokens in shape)
    sizes = splash.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        attn_logits_soft_cap=softcap, interpret=interpret,
    )  # fmt: skip


def _decode_rows(
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
    keys: Float[Array, "B J S C"],
    values: Float[Array, "B J S C"],
    position: Int[Array, " B"],
    *,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """`attend_and_write`, which under vmap runs once for the rows of all agents.

    If kv heads lie side by side in the cache, J = K / P in the second axis and P in the last, the kernel takes them for one
    head with the queries of all. A query is zero but for the elements of its own head, and of its output only these count.
    """

    @jax.custom_batching.custom_vmap
    def of_rows(*arguments: Array) -> tuple[Array, Array, Array]:
        return attend_and_write(*arguments, window=window, softcap=softcap, interpret=interpret)

    @of_rows.def_vmap
    def of_all_rows(agents: int, batched: Any, *arguments: Array) -> tuple[tuple[Array, Array, Array], Any]:
        assert all(batched), "each agent has rows of its own"
        join = lambda x: x.reshape(-1, *x.shape[2:])
        split = lambda x: x.reshape(agents, -1, *x.shape[1:])
        output, keys, values = of_rows(*map(join, arguments))
        return (split(output), split(keys), split(values)), (True, True, True)

    (rows, _, heads, dim), (packed, size) = q.shape, (keys.shape[1], keys.shape[3])
    shared = k.shape[2] // packed
    own = jnp.eye(shared, dtype=q.dtype)  # of each head: which of the heads beside each other it is
    grouped = q.reshape(rows, packed, shared, -1, 1, dim) * own[:, None, :, None]
    queries = _pad_last(grouped.reshape(rows, packed, heads // packed, shared * dim), size)
    new = (_pack_heads(x, shared, size).swapaxes(1, 2) for x in (k, v))
    output, keys, values = of_rows(queries, *new, keys, values, position)
    parts = output[..., : shared * dim].reshape(rows, packed, shared, -1, shared, dim)
    return jnp.einsum("rjpgph->rjpgh", parts).reshape(rows, 1, -1), keys, values


def _pack_heads(x: Float[Array, "B T K H"], shared: int, size: int) -> Float[Array, "B T J C"]:
    """`x` with `shared` heads side by side, and zeros after them up to `size` elements."""
    return _pad_last(x.reshape(*x.shape[:2], x.shape[2] // shared, -1), size)


def _pad_last(x: Float[Array, "... H"], size: int) -> Float[Array, "... C"]:
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, size - x.shape[-1]),))
