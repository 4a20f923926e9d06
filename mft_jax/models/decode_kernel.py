"""A Pallas TPU kernel for the attention of one decode step, which also writes the new column into the KV cache.

XLA cannot do this cheaply: each row writes at its own position, which XLA compiles to a copy or to an element-wise select
of the whole cache. The kernel reads only the blocks of columns that a row has filled, and writes one tile per row and kv
head. The softmax is accumulated block by block (Milakov and Gimelshein, 2018) in a fixed order, so that a row's result
does not depend on the other rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

BLOCK = 512  # most columns per block; [K, BLOCK, H] keys and values, twice for the pipeline, must fit the vector memory
_NEGATIVE = -1e30
_LANES = 128  # the running maximum and sum are stored once per lane, because a column vector would not fit the tiling


def attend_and_write(
    q: Float[Array, "B K G H"],
    k: Float[Array, "B K 1 H"],
    v: Float[Array, "B K 1 H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    position: Int[Array, " B"],
    *,
    window: int | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B K G H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Writes `k` and `v` into column `position` of each row's cache, and attends to the columns up to this one.

    G is the number of query heads per kv head. The queries are already scaled. With `window` only the last `window` columns
    are attended to; with `softcap` c the scores are c tanh(q k / c). Returns (output, keys, values). The cache is updated in
    place if the caller donates it. `interpret` runs the kernel on any platform, slowly. Raises ValueError if S is not a
    multiple of the columns of a tile: 8 in float32, 16 in bfloat16.
    """
    rows, kv_heads, groups, dim = q.shape
    columns, tile = keys.shape[2], 32 // keys.dtype.itemsize
    if columns % tile:
        raise ValueError(f"the cache has {columns} columns, expected a multiple of {tile} for {keys.dtype}")
    block = next(size for size in range(min(BLOCK, columns), 0, -tile) if columns % size == 0)
    first = lambda at: 0 if window is None else jnp.maximum(at - window + 1, 0) // block
    row = lambda r, j, at: (r, 0, 0, 0)
    # Blocks outside of the row's columns map to its nearest block, which the pipeline does not fetch again.
    filled = lambda r, j, at: (r, 0, jnp.clip(j, first(at[r]), at[r] // block), 0)
    written = lambda r, j, at: (r, 0, at[r] // tile, 0)
    cache_in = pl.BlockSpec((1, kv_heads, block, dim), filled)
    cache_out = pl.BlockSpec((1, kv_heads, tile, dim), written)
    queries, new = pl.BlockSpec((1, kv_heads, groups, dim), row), pl.BlockSpec((1, kv_heads, 1, dim), row)
    running = pltpu.VMEM((kv_heads, groups, _LANES), jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, block=block, tile=tile, window=window, softcap=softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, columns // block),
            in_specs=[queries, new, new, cache_in, cache_in],
            out_specs=[queries, cache_out, cache_out],
            scratch_shapes=[running, running, pltpu.VMEM((kv_heads, groups, dim), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            *(shape_in_hbm(cache, interpret) for cache in (keys, values)),
        ],
        input_output_aliases={4: 1, 5: 2},  # keys and values; input 0 is `position`
        cost_estimate=pl.CostEstimate(
            flops=4 * q.size * columns,
            transcendentals=rows * kv_heads * groups * columns,
            bytes_accessed=keys.nbytes
            + values.nbytes
            + 2 * q.nbytes
            + 2 * rows * kv_heads * tile * dim * keys.dtype.itemsize,
        ),
        name="decode_attention",
        interpret=interpret,
    )(position, q, k, v, in_hbm(keys, interpret), in_hbm(values, interpret))


def in_hbm(array: Array, interpret: bool) -> Array:
    """`array`, which is to stay in the main memory.

    XLA would otherwise move the caches of some layers to the vector memory and back in every step, because they fit.
    """
    return array if interpret else pltpu.with_memory_space_constraint(array, pltpu.HBM)


def shape_in_hbm(array: Array, interpret: bool) -> Any:
    """The shape of a kernel's result that is like `array`, and in the main memory."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype) if interpret else pltpu.HBM(array.shape, array.dtype)


def _kernel(
    position,
    q,
    new_k,
    new_v,
    keys,
    values,
    output,
    keys_out,
    values_out,
    top,
    total,
    sums,
    *,
    block,
    tile,
    window,
    softcap,
):
    """One block of columns of one row. `top` and `total` are the softmax's maximum and sum so far.

    `sums` are the weighted sums of the values so far.
    """
    at, index = position[pl.program_id(0)], pl.program_id(1)
    last = at // block
    first = 0 if window is None else jnp.maximum(at - window + 1, 0) // block

    @pl.when(index == 0)
    def _():
        top[...] = jnp.full_like(top, _NEGATIVE)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when((index >= first) & (index <= last))
    def _():
        start = index * block
        for head in range(sums.shape[0]):
            k = _with_new(keys[0, head], new_k[0, head], start, at)
            v = _with_new(values[0, head], new_v[0, head], start, at)
            now, total[head], sums[head] = _add_block(
                q[0, head], k, v, top[head, :, :1], total[head], sums[head],
                start=start, at=at, window=window, softcap=softcap,
            )  # fmt: skip
            top[head] = jnp.broadcast_to(now, top.shape[1:])

    @pl.when(index == last)
    def _():
        start = at // tile * tile
        inside = pl.ds(pl.multiple_of(start - last * block, tile), tile)
        for head in range(sums.shape[0]):
            keys_out[0, head] = _with_new(keys[0, head, inside], new_k[0, head], start, at)
            values_out[0, head] = _with_new(values[0, head, inside], new_v[0, head], start, at)
            output[0, head] = (sums[head] / total[head, :, :1]).astype(output.dtype)


def _with_new(cache: Float[Array, "C H"], new: Float[Array, "1 H"], start: Array, at: Array) -> Float[Array, "C H"]:
    """Columns of the cache from `start` on, with the new column at its place."""
    columns = start + jax.lax.broadcasted_iota(jnp.int32, cache.shape, 0)
    return jnp.where(columns == at, jnp.broadcast_to(new, cache.shape), cache)


def _add_block(
    q: Float[Array, "G H"],
    k: Float[Array, "C H"],
    v: Float[Array, "C H"],
    top: Float[Array, "G 1"],
    total: Float[Array, "G L"],
    sums: Float[Array, "G H"],
    *,
    start: Array,
    at: Array,
    window: int | None,
    softcap: float | None,
) -> tuple[Array, Array, Array]:
    """Adds C columns, from `start` on, to the softmax. Returns its new maximum, its sum, and the weighted sum of the values.

    `total` holds the sum once for each of the L lanes.
    """
    columns = start + jax.lax.broadcasted_iota(jnp.int32, (q.shape[0], k.shape[0]), 1)
    seen = columns <= at if window is None else (columns <= at) & (columns > at - window)
    # Columns that are not filled can hold anything, also NaN, which a weight of zero would not remove.
    v = jnp.where(start + jax.lax.broadcasted_iota(jnp.int32, v.shape, 0) <= at, v, 0)
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen, scores, _NEGATIVE)
    now = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
    weights, shrink = jnp.exp(scores - now), jnp.exp(top - now)
    product = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return now, total * shrink + jnp.sum(weights, axis=1, keepdims=True), sums * shrink + product
