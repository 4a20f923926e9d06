"""Attention over packed rows for training: causal, within segments, a chunk of queries at a time.

A chunk of queries meets only the keys up to its own end, which leaves out almost half of the T x T scores, and scores
small enough for the cache: on CPUs a whole training step takes less than half the time it takes with dense scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mft_jax.models.attention import NEGATIVE, transposed

CHUNK = 128  # queries; longer rows have longer chunks, so that there are never more than 8 to compile
MOST_CHUNKS = 8


def packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    chunk: int | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k / sqrt(H)) v over the earlier tokens of a token's own segment; the softmax is in float32."""
    batch, time, heads, dim = q.shape
    kv_heads = k.shape[2]
    chunk = chunk or max(CHUNK, -(-time // MOST_CHUNKS))
    q = (q * dim**-0.5).reshape(batch, time, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    keys, values = transposed(k, v)
    mixed = []
    for start in range(0, time, chunk):
        end = min(start + chunk, time)
        same = segment_ids[:, start:end, None] == segment_ids[:, None, :end]
        mask = same & (jnp.arange(start, end)[:, None] >= jnp.arange(end))
        part = _attend(q[:, :, :, start:end], keys[..., :end], values[:, :, :end], mask)
        mixed.append(part.transpose(0, 3, 1, 2, 4).reshape(batch, end - start, heads, dim))
    return jnp.concatenate(mixed, axis=1)


def _attend(
    q: Float[Array, "B K G T H"], keys: Float[Array, "B K H S"], values: Float[Array, "B K S H"], mask: Array
) -> Float[Array, "B K G T H"]:
    """One chunk. The weights are divided by their sum after they have met the values: H numbers instead of S."""
    batch, kv_heads, groups, time, dim = q.shape
    scores = jnp.einsum(
        "bkth,bkhs->bkts", q.reshape(batch, kv_heads, -1, dim), keys, preferred_element_type=jnp.float32
    )
    scores = scores.reshape(batch, kv_heads, groups, time, -1)
    scores = jnp.where(mask[:, None, None], scores, NEGATIVE)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)  # at least 1: the largest weight is exp(0)
    flat = weights.astype(values.dtype).reshape(batch, kv_heads, groups * time, -1)
    mixed = jnp.einsum("bkts,bksh->bkth", flat, values, preferred_element_type=jnp.float32)
    return (mixed.reshape(q.shape) / total).astype(q.dtype)
