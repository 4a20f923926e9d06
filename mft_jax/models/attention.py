"""Grouped-query attention over keys that are kept transposed.

Keys are [B, K, H, S] and values [B, K, S, H], so that both products are plain batched matmuls: on CPUs three times
faster in decoding than the [B, S, K, H] layout, and no slower on accelerators.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_FEW = 8  # queries of a kv head
NEGATIVE = -1e30  # finite: a fully masked row (padding) then gives a uniform average instead of NaN


def attend(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q k / sqrt(H)) v where `mask` allows it; the softmax is in float32."""
    batch, time, heads, dim = q.shape
    groups = heads // keys.shape[1]
    q = (q * dim**-0.5).reshape(batch, time, -1, groups, dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    q = q.reshape(batch, -1, groups * time, dim)
    scores = _scores(q, keys)
    scores = scores.reshape(batch, -1, groups, time, scores.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, NEGATIVE), axis=-1).astype(values.dtype)
    weights = weights.reshape(batch, -1, groups * time, weights.shape[-1])
    mixed = jnp.einsum("bkts,bksh->bkth", weights, values)
    return mixed.reshape(batch, -1, groups, time, dim).transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim)


def _scores(q: Float[Array, "B K T H"], keys: Float[Array, "B K H S"]) -> Float[Array, "B K T S"]:
    """q k, in float32. XLA's CPU matmul is slow for the one or few queries of a decode step: there, multiply and sum."""
    matmul = lambda q, keys: jnp.einsum("bkth,bkhs->bkts", q, keys, preferred_element_type=jnp.float32)
    if q.shape[2] > _FEW:
        return matmul(q, keys)
    sums = lambda q, keys: jnp.sum((q[..., None] * keys[:, :, None]).astype(jnp.float32), axis=3)
    return jax.lax.platform_dependent(q, keys, cpu=sums, default=matmul)


def transposed(
    k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> tuple[Float[Array, "B K H T"], Float[Array, "B K T H"]]:
    """Keys and values in the layout `attend` and the KV cache use."""
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


def causal_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """A token sees itself and earlier tokens of its own segment; packed dialogues never see each other."""
    time = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & jnp.tril(jnp.ones((time, time), bool))
