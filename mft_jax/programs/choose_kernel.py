"""Pallas TPU kernels for `choose_split`: passes over a part of the vocabulary that stay in the vector memory.

XLA would read the weights again for each threshold, and copy them to make blocks of a cumulative sum.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

_ROWS = 8  # per block: the rows of a tile of float32
LANES = 128  # the columns of a tile


def masses_from(
    weights: Float[Array, "R S"], thresholds: Float[Array, "R C"], *, interpret: bool = False
) -> Float[Array, "R C"]:
    """For each of the C thresholds of a row, the sum of those of the row's S weights that are at least as large."""

    def kernel(weights, thresholds, masses):
        for column in range(thresholds.shape[1]):
            own = slice(column, column + 1)
            large = jnp.where(weights[...] >= thresholds[:, own], weights[...], 0.0)
            masses[:, own] = jnp.sum(large, axis=1, keepdims=True)

    rows, size, count = *weights.shape, thresholds.shape[1]
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, _ROWS),),
        in_specs=[_block(size), _block(count)],
        out_specs=_block(count),
        out_shape=jax.ShapeDtypeStruct((rows, count), jnp.float32),
        cost_estimate=pl.CostEstimate(flops=3 * rows * size * count, bytes_accessed=weights.nbytes, transcendentals=0),
        name="masses_from",
        interpret=interpret,
    )(weights, thresholds)


def draw(
    weights: Float[Array, "R S"], least: Float[Array, "R 1"], target: Float[Array, "R 1"], *, interpret: bool = False
) -> tuple[Int[Array, "R 1"], Bool[Array, "R 1"]]:
    """The first index of each row at which the cumulative sum of its weights exceeds `target`. S is a multiple of 128.

    Weights below `least` do not count. Also returns whether the weight at the index counts: because of rounding, the end of
    the sum can be an index whose weight does not.
    """

    def kernel(weights, least, target, index, counts):
        rows = weights.shape[0]
        aim, smallest = target[...], least[...]

        def block(number, carry):
            total, before, start, found = carry
            own = weights[:, pl.ds(pl.multiple_of(number * LANES, LANES), LANES)]
            own = jnp.where(own >= smallest, own, 0.0)
            after = total + jnp.sum(own, axis=1, keepdims=True)
            here = (total <= aim) & (
                after > total
            )  # the last such block is that of the target, or the last with weights
            pick = lambda new, old: jnp.where(here, new, old)
            return after, pick(total, before), pick(number * LANES, start), pick(own, found)

        zero, nothing = jnp.zeros((rows, 1), jnp.float32), jnp.zeros((rows, LANES), jnp.float32)
        first = zero, zero, jnp.zeros((rows, 1), jnp.int32), nothing
        _, before, start, found = jax.lax.fori_loop(0, weights.shape[1] // LANES, block, first)
        lanes = jax.lax.broadcasted_iota(jnp.int32, found.shape, 1)
        sums, step = found, 1
        while step < LANES:  # the cumulative sum over lanes, in log2(128) steps
            shifted = jnp.concatenate([jnp.zeros((rows, step), jnp.float32), sums[:, :-step]], axis=1)
            sums, step = sums + shifted, 2 * step
        place = jnp.sum((sums <= aim - before).astype(jnp.int32), axis=1, keepdims=True)
        index[...] = start + jnp.minimum(place, LANES - 1)
        counts[...] = jnp.sum(jnp.where(lanes == place, found, 0.0), axis=1, keepdims=True)

    rows, size = weights.shape
    index, counts = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, _ROWS),),
        in_specs=[_block(size), _block(1), _block(1)],
        out_specs=[_block(1), _block(1)],
        out_shape=[jax.ShapeDtypeStruct((rows, 1), jnp.int32), jax.ShapeDtypeStruct((rows, 1), jnp.float32)],
        cost_estimate=pl.CostEstimate(flops=8 * rows * size, bytes_accessed=weights.nbytes, transcendentals=0),
        name="draw_token",
        interpret=interpret,
    )(weights, least, target)
    return index, counts > 0


def _block(columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((_ROWS, columns), lambda row: (row, 0))
