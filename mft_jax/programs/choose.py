"""Samples the next token of every row with temperature and top-p (nucleus), without sorting the vocabulary.

A token is in the nucleus if all tokens more likely than it have a total probability below top_p. The sampler draws a
token from the full distribution and accepts it if it is in the nucleus. Otherwise no equally or less likely token is in
the nucleus either, so it draws again from the more likely tokens only. Each draw takes a few passes over the
vocabulary, and two or three draws are typical. Accepted tokens follow the renormalized distribution of the nucleus
exactly (the rejection sampling of FlashInfer, 2025).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.seeds import wrap_row_keys

# A rejected draw removes, on average, at least half of the remaining probability mass. A row that has no accepted token
# after this many draws gets its most likely token.
MAX_DRAWS = 64
_BLOCK = 128  # vocabulary entries per block of the two-level inverse CDF


class Choice(NamedTuple):
    """A token for each row, and whether the row's logits were valid. Where they were not, ignore the token."""

    token: Int[Array, " B"]
    finite: Bool[Array, " B"]


def choose(
    logits: Float[Array, "B V"],
    keys: UInt32[Array, "B 2"],
    index: Int[Array, " B"],
    active: Bool[Array, " B"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Choice:
    """Chooses one token for each row.

    `index` is the position of the token in its answer. The row's key and `index` together determine every random draw.
    A temperature of 0 chooses the most likely token. Rows that are not `active`, and rows whose logits contain NaN or
    +inf or only -inf, are not sampled: they get the argmax of their logits, and the loop does not wait for them.
    """
    probabilities = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6), axis=-1)
    finite = ~jnp.isnan(probabilities[:, 0])  # a NaN, a +inf, or only -inf makes the whole softmax NaN
    step_keys = jax.vmap(jax.random.fold_in)(wrap_row_keys(keys), index)

    def draw(carry):
        attempt, floor, token, accepted = carry
        kept = jnp.where(probabilities > floor[:, None], probabilities, 0.0)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt)))(step_keys)
        drawn = inverse_cdf(kept, uniform)
        probability = jnp.take_along_axis(kept, drawn[:, None], axis=-1)[:, 0]
        likelier = jnp.sum(jnp.where(probabilities > probability[:, None], probabilities, 0.0), axis=-1)
        real = probability > 0  # rounding at the end of the CDF can select an excluded token: draw again
        accept = ~accepted & real & (likelier < top_p)
        token = jnp.where(accept, drawn, token)
        floor = jnp.where(accepted | ~real, floor, probability)
        return attempt + 1, floor, token, accepted | accept

    likeliest = _argmax(logits)
    settled = (temperature <= 0) | ~active | ~finite
    start = (jnp.int32(0), jnp.zeros(likeliest.shape), likeliest, settled)
    unsettled = lambda carry: (carry[0] < MAX_DRAWS) & ~jnp.all(carry[3])
    return Choice(jax.lax.while_loop(unsettled, draw, start)[2], finite)


def _argmax(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The first index of the largest logit; any index if there is a NaN.

    On CPUs two plain reductions are faster than jnp.argmax, which keeps track of pairs of value and index.
    """
    size = logits.shape[-1]
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == largest, jnp.arange(size, dtype=jnp.int32), size - 1), axis=-1)


def inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The first index at which the cumulative sum of `weights` exceeds `uniform` times their total.

    Finds the block first, then the index within it, so that no cumulative sum over the whole vocabulary is needed.
    """
    rows, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = uniform * ends[:, -1]
    block = jnp.minimum(jnp.sum(ends <= target[:, None], axis=-1), ends.shape[1] - 1)
    before = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    place = jnp.minimum(jnp.sum(inside <= (target - before)[:, None], axis=-1), _BLOCK - 1)
    return jnp.minimum(block * _BLOCK + place, size - 1).astype(jnp.int32)
