"""Grouped-query attention over keys that are kept transposed.

Keys are [B, K, H, S] and values [B, K, S, H], so that both products are plain batched matmuls: on CPUs three times
faster in decoding than the [B, S, K, H] layout, and no slower on accelerators.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CHUNK = 128  # queries that are scored together
MOST_CHUNKS = 8  # longer rows have longer chunks, so that no more than these are compiled
_NEGATIVE = -1e30  # finite: a fully masked row (padding) then gives an average instead of NaN
_FEW = 8  # queries of a kv head, up to which XLA's CPU matmul is slower than multiplying and adding


def attend(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k) v where `mask` allows it, for queries that are already scaled; the softmax is in float32.

    With `softcap` c the scores are c tanh(q k / c).
    """
    batch, time, heads, dim = q.shape
    kv_heads, groups = keys.shape[1], heads // keys.shape[1]
    q = q.reshape(batch, time, kv_heads, groups, dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    scores = _scores(q.reshape(batch, kv_heads, groups * time, dim), keys)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores.reshape(batch, kv_heads, groups, time, -1), _NEGATIVE)
    # Divided by their sum after the product with the values: H divisions instead of S. The sum is at least exp(0).
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    flat = weights.astype(values.dtype).reshape(batch, kv_heads, groups * time, -1)
    output = jnp.einsum("bkts,bksh->bkth", flat, values, preferred_element_type=jnp.float32)
    output = (output.reshape(q.shape) / total).astype(q.dtype)
    return output.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim)


def causal_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H T"],
    values: Float[Array, "B K T H"],
    segment_ids: Int[Array, "B T"],
    *,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, "B T N H"]:
    """A token attends to itself and earlier tokens of its own segment; packed dialogues never see each other.

    With a `window`, it attends only to that many last tokens, itself included.
    Each chunk of queries is scored against the keys from its window's start to its own end only. That leaves out almost
    half of the T x T scores, or more, and the chunks fit a CPU's cache: a training step on CPUs takes less than half of
    the time that it takes with all scores.
    """
    time = q.shape[1]
    chunk = chunk or max(CHUNK, -(-time // MOST_CHUNKS))
    outputs = []
    for start in range(0, time, chunk):
        end = min(start + chunk, time)
        first = 0 if window is None else max(0, start - window + 1)
        same = segment_ids[:, start:end, None] == segment_ids[:, None, first:end]
        mask = same & visible(jnp.arange(start, end)[:, None], jnp.arange(first, end), window)
        outputs.append(attend(q[:, start:end], keys[..., first:end], values[:, :, first:end], mask, softcap))
    return jnp.concatenate(outputs, axis=1)


def visible(queries: Int[Array, "..."], keys: Int[Array, "..."], window: int | None) -> Bool[Array, "..."]:
    """Which keys a query attends to, by their places in the row: none after it, and no more than `window` of the others."""
    earlier = keys <= queries
    return earlier if window is None else earlier & (keys > queries - window)


def transposed(
    k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> tuple[Float[Array, "B K H T"], Float[Array, "B K T H"]]:
    """Keys and values in the layout that attention and the KV cache use."""
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


def _scores(q: Float[Array, "B K T H"], keys: Float[Array, "B K H S"]) -> Float[Array, "B K T S"]:
    """q k, in float32. XLA's CPU matmul is slow for the few queries of a decode step: there, multiply and add."""
    matmul = lambda q, keys: jnp.einsum("bkth,bkhs->bkts", q, keys, preferred_element_type=jnp.float32)
    if q.shape[2] > _FEW:
        return matmul(q, keys)
    sums = lambda q, keys: jnp.sum((q[..., None] * keys[:, :, None]).astype(jnp.float32), axis=3)
    return jax.lax.platform_dependent(q, keys, cpu=sums, default=matmul)
