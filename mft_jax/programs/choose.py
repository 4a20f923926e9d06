"""The next token of every row: temperature and nucleus (top-p) sampling without sorting the vocabulary.

A token is in the nucleus when the tokens likelier than it have less than top_p together. So draw from the whole
distribution and accept if that holds; if not, neither the drawn token nor any less likely one is in the nucleus: draw
again among the likelier ones. Each draw costs a few passes over the vocabulary, two or three are the rule, and accepted
tokens are distributed exactly as in sampling from the renormalized nucleus (the rejection scheme of FlashInfer, 2025).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.seeds import wrap_row_keys

MAX_DRAWS = 64  # each draw at least halves the mass left on average; after that many the likeliest token is taken
_BLOCK = 128  # tokens summed together before the inverse CDF looks inside


class Choice(NamedTuple):
    """A token for each row, and whether its logits were sound; where they were not, the token means nothing."""

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
    """One token for each row. `index` is the token's place in its answer: with the row's key it decides all random draws.

    Rows that are not `active`, or whose logits hold NaN or infinity, or nothing but minus infinity, take no part in the
    drawing: they get the likeliest token, and the loop does not wait for them.
    """
    probabilities = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6), axis=-1)
    finite = ~jnp.isnan(probabilities[:, 0])  # one NaN, one infinity or no finite logit makes the whole row NaN
    step_keys = jax.vmap(jax.random.fold_in)(wrap_row_keys(keys), index)

    def draw(carry):
        attempt, floor, token, accepted = carry
        kept = jnp.where(probabilities > floor[:, None], probabilities, 0.0)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt)))(step_keys)
        drawn = inverse_cdf(kept, uniform)
        probability = jnp.take_along_axis(kept, drawn[:, None], axis=-1)[:, 0]
        likelier = jnp.sum(jnp.where(probabilities > probability[:, None], probabilities, 0.0), axis=-1)
        real = probability > 0  # rounding at the end of the CDF can point at a token already excluded: draw again
        accept = ~accepted & real & (likelier < top_p)
        token = jnp.where(accept, drawn, token)
        floor = jnp.where(accepted | ~real, floor, probability)
        return attempt + 1, floor, token, accepted | accept

    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    settled = (temperature <= 0) | ~active | ~finite
    start = (jnp.int32(0), jnp.zeros(likeliest.shape), likeliest, settled)
    unsettled = lambda carry: (carry[0] < MAX_DRAWS) & ~jnp.all(carry[3])
    return Choice(jax.lax.while_loop(unsettled, draw, start)[2], finite)


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
