"""The next token of every row: temperature and nucleus (top-p) sampling without sorting the vocabulary.

A token is in the nucleus when the tokens likelier than it have less than top_p together. So draw from the whole
distribution and accept if that holds; if not, neither the drawn token nor any less likely one is in the nucleus: draw
again above it. Each draw costs a few passes over the vocabulary, two or three are the rule, and accepted tokens are
distributed exactly as in sampling from the renormalised nucleus (the rejection scheme of FlashInfer, 2025).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

_BLOCK = 128  # tokens summed together before the inverse CDF looks inside


def choose(
    logits: Float[Array, "B V"],
    keys: UInt32[Array, "B 2"],
    index: Int[Array, " B"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, " B"]:
    """One token a row. `index` is the token's place in its answer: with the row's key it decides all its random draws."""
    probabilities = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6), axis=-1)
    step_keys = jax.vmap(lambda key, i: jax.random.fold_in(jax.random.wrap_key_data(key), i))(keys, index)

    def draw(carry):
        attempt, floor, token, accepted = carry
        kept = jnp.where(probabilities > floor[:, None], probabilities, 0.0)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt)))(step_keys)
        drawn = inverse_cdf(kept, uniform)
        probability = jnp.take_along_axis(kept, drawn[:, None], axis=-1)[:, 0]
        likelier = jnp.sum(jnp.where(probabilities > probability[:, None], probabilities, 0.0), axis=-1)
        real = probability > 0  # rounding at the end of the CDF can point at a token already excluded: draw again
        token = jnp.where(accepted, token, drawn)
        floor = jnp.where(accepted | ~real, floor, probability)
        return attempt + 1, floor, token, accepted | (real & (likelier < top_p))

    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    rows = greedy.shape[0]
    start = (jnp.int32(0), jnp.zeros(rows), greedy, jnp.broadcast_to(temperature <= 0, (rows,)))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), draw, start)[2]


def inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The index at which the running sum of `weights` passes `uniform` times their total, found block by block."""
    rows, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = uniform * ends[:, -1]
    block = jnp.minimum(jnp.sum(ends <= target[:, None], axis=-1), ends.shape[1] - 1)
    before = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    place = jnp.minimum(jnp.sum(inside <= (target - before)[:, None], axis=-1), _BLOCK - 1)
    return jnp.minimum(block * _BLOCK + place, size - 1).astype(jnp.int32)
