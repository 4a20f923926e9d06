"""Grouped-query attention with transposed keys.

Keys are [B, K, H, S] and values [B, K, S, H], so that both products are plain batched matmuls. In decoding this is three
times faster on CPUs than the layout [B, S, K, H], and no slower on accelerators.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CHUNK = 128  # queries per chunk in `causal_attention`
MOST_CHUNKS = 8  # longer rows have longer chunks instead, to limit the size of the compiled program
_NEGATIVE = -1e30  # finite, so that a fully masked row (padding) gives an average of the values instead of NaN
_FEW_QUERIES = 8  # up to this many queries per kv head, XLA's CPU matmul is slower than element-wise products


def attend(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k) v over the keys that `mask` allows, with the softmax in float32. The queries are already scaled.

    With `softcap` c the scores are c tanh(q k / c).
    """
    batch, time, heads, dim = q.shape
    kv_heads, groups = keys.shape[1], heads // keys.shape[1]
    q = q.reshape(batch, time, kv_heads, groups, dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    scores = _query_key_products(q.reshape(batch, kv_heads, groups * time, dim), keys)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores.reshape(batch, kv_heads, groups, time, -1), _NEGATIVE)
    # The weights are normalized after the product with the values: H divisions instead of S. The sum is at least exp(0).
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    flat = weights.astype(values.dtype).reshape(batch, kv_heads, groups * time, -1)
    output = jnp.einsum("bkts,bksh->bkth", flat, values, preferred_element_type=jnp.float32)
    output = (output.reshape(q.shape) / total).astype(q.dtype)
    return output.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim)


def causal_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    segment_ids: Int[Array, "B S"],
    *,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, "B T N H"]:
    """Each token attends to itself and to the earlier tokens of its own segment, never to another packed dialogue.

    The queries are those of the last T of the S tokens: of all tokens, or of those after a prefix that has been read before.
    With `window`, it attends only to the last `window` of these tokens, itself included. `chunk` is the number of queries
    per chunk (None: chosen by T).

    Each chunk of queries is multiplied only with the keys from the start of its window to the end of the chunk. This
    skips almost half of the T x T scores, or more with a window, and a chunk fits a CPU's cache. On CPUs a training step
    takes less than half of the time that it takes with all scores.
    """
    time, before = q.shape[1], keys.shape[3] - q.shape[1]
    chunk = chunk or max(CHUNK, -(-time // MOST_CHUNKS))
    outputs = []
    for start in range(0, time, chunk):
        own, end = slice(start, min(start + chunk, time)), before + min(start + chunk, time)
        first = 0 if window is None else max(0, before + start - window + 1)
        same = segment_ids[:, before + start : end, None] == segment_ids[:, None, first:end]
        mask = same & visible(jnp.arange(before + start, end)[:, None], jnp.arange(first, end), window)
        outputs.append(attend(q[:, own], keys[..., first:end], values[:, :, first:end], mask, softcap))
    return jnp.concatenate(outputs, axis=1)


def visible(queries: Int[Array, "..."], keys: Int[Array, "..."], window: int | None) -> Bool[Array, "..."]:
    """Whether each query may attend to each key, by their positions in the row: causal, and within `window` if given."""
    earlier = keys <= queries
    return earlier if window is None else earlier & (keys > queries - window)


def transposed(
    k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> tuple[Float[Array, "B K H T"], Float[Array, "B K T H"]]:
    """Transposes keys and values to the layout of attention and of the KV cache."""
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


def _query_key_products(q: Float[Array, "B K T H"], keys: Float[Array, "B K H S"]) -> Float[Array, "B K T S"]:
    """The products q k in float32. On CPUs, a chain of sums computes those of a decode step, because it is faster there."""
    matmul = lambda q, keys: jnp.einsum("bkth,bkhs->bkts", q, keys, preferred_element_type=jnp.float32)
    if q.shape[2] > _FEW_QUERIES:
        return matmul(q, keys)
    return jax.lax.platform_dependent(q, keys, cpu=_sum_over_dimensions, default=matmul)


def _sum_over_dimensions(q: Float[Array, "B K T H"], keys: Float[Array, "B K H S"]) -> Float[Array, "B K T S"]:
    """The products q k as H element-wise products, added up one after the other.

    XLA fuses them into one loop over the keys, which reads each key once, at the speed of the memory. A reduction over H
    takes up to twice as long. The barrier keeps the computation of q out of that loop.
    """
    q = jax.lax.optimization_barrier(q)
    total = jnp.zeros((), jnp.float32)
    for dimension in range(keys.shape[2]):
        total = total + (q[..., dimension, None] * keys[:, :, None, dimension]).astype(jnp.float32)
    return total
