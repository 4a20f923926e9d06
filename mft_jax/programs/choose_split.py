"""Samples the next token of every row where the vocabulary is split over devices, as on a TPU slice.

The rejection sampler of `choose` looks at the whole vocabulary for each draw, in a loop whose length depends on the data:
over a split vocabulary each draw would wait for several collectives. Here the nucleus is found first, by a search for the
smallest weight in it with a fixed number of steps, and one draw follows. Devices exchange a few numbers per row and step,
never the logits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt32

from mft_jax.parallel.mesh import sharding
from mft_jax.programs import choose_kernel
from mft_jax.programs.choose import Choice
from mft_jax.seeds import wrap_row_keys

_BITS = 3  # bits of the smallest weight that a step of the search finds: it tries 2^3 - 1 candidates at once
_ALL_BITS = 30  # as float32, 0 to 1 are the integers 0 to 0x3F800000 in the same order


def choose_split(
    logits: Float[Array, "A B V"],
    keys: UInt32[Array, "A B 2"],
    index: Int[Array, "A B"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    mesh: Mesh,
    *,
    masses_from: Callable = choose_kernel.masses_from,
    draw: Callable = choose_kernel.draw,
) -> Choice:
    """Chooses one token for each row, by temperature and top-p, of logits whose vocabulary is split over the mesh.

    `index` is the position of the token in its answer; the row's key and `index` together determine the draw. A temperature
    of 0 chooses the most likely token. Rows with NaN or +inf or only -inf are not `finite`: ignore their token. The
    last two arguments are the passes over the vocabulary, by default the TPU kernels.
    """
    split = sharding(mesh, "agent", "batch", "vocab", shape=logits.shape).spec
    rows, whole = PartitionSpec(*split[:2]), PartitionSpec()
    function = functools.partial(_choose_part, axis=split[2], masses_from=masses_from, draw=draw)
    specs = (split, PartitionSpec(*split[:2], None), rows, whole, whole)
    each: Any = rows  # the partition of both fields
    choose = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=Choice(each, each), check_vma=False)
    return choose(logits, keys, index, temperature, top_p)


def _choose_part(
    logits: Float[Array, "A B S"],
    keys: UInt32[Array, "A B 2"],
    index: Int[Array, "A B"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    axis: str | None,
    masses_from: Callable,
    draw: Callable,
) -> Choice:
    """The work of one device, on its rows and its part of the vocabulary. `axis` is the mesh axis of the parts.

    Within it rows have one axis, of size R = A * B.
    """
    shape, size = logits.shape[:2], logits.shape[2]
    logits = logits.reshape(-1, size)
    number, parts = (0, 1) if axis is None else (jax.lax.axis_index(axis), jax.lax.axis_size(axis))
    over_parts = lambda reduce, x: x if axis is None else reduce(x, axis)
    total_of = functools.partial(over_parts, jax.lax.psum)

    scaled = logits / jnp.maximum(temperature, 1e-6)
    top = over_parts(jax.lax.pmax, jnp.max(scaled, axis=1, keepdims=True))
    weights = jnp.exp(scaled - top)  # from 0 to 1; NaN if the row is not finite
    total = total_of(jnp.sum(weights, axis=1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -size % choose_kernel.LANES)))

    masses = lambda thresholds: total_of(masses_from(weights, thresholds))
    least = smallest_in_nucleus(masses, top_p * total)

    own = masses_from(weights, least)  # [R, 1]
    ends = jnp.cumsum(own if axis is None else jax.lax.all_gather(own, axis, axis=1, tiled=True), axis=1)  # [R, parts]
    uniform = lambda key, index: jax.random.uniform(jax.random.fold_in(wrap_row_keys(key), index))
    target = jax.vmap(uniform)(keys.reshape(-1, 2), index.reshape(-1))[:, None] * ends[:, -1:]
    chosen = jnp.minimum(jnp.sum(ends <= target, axis=1, keepdims=True), parts - 1)  # the part of the target
    drawn, counts = draw(weights, least, target - ends[:, number][:, None] + own)
    here = chosen == number
    token = total_of(jnp.where(here & counts, drawn + number * size + 1, 0)) - 1  # -1: no token with a weight
    likeliest = _argmax(logits, number * size, over_parts)
    token = jnp.where((temperature > 0) & (token >= 0), token, likeliest)
    return Choice(token.reshape(shape), jnp.isfinite(total).reshape(shape))


def smallest_in_nucleus(
    masses: Callable[[Float[Array, "R C"]], Float[Array, "R C"]], mass: Float[Array, "R 1"]
) -> Float[Array, "R 1"]:
    """The smallest weight in the nucleus, or a number between it and the next smaller weight.

    A token is in the nucleus if all tokens with larger weights have a total weight below `mass`. `masses` gives the totals
    of the weights that are at least as large as the thresholds [R, C]. A total falls as its threshold grows, and the bits
    of float32 numbers, read as integers, have the order of the numbers: the bits of the result are found from the highest
    to the lowest.
    """
    digits = jnp.arange(1, 2**_BITS, dtype=jnp.int32)
    found = jnp.zeros(mass.shape, jnp.int32)
    for shift in range(_ALL_BITS - _BITS, -1, -_BITS):
        candidates = found + (digits << shift)
        too_many = masses(jax.lax.bitcast_convert_type(candidates, jnp.float32)) >= mass
        found += jnp.sum(too_many, axis=1, keepdims=True, dtype=jnp.int32) << shift
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def _argmax(logits: Float[Array, "R S"], offset: Int[Array, ""] | int, over_parts: Callable) -> Int[Array, "R 1"]:
    """The index of the largest logit of each row; of equal ones the first."""
    largest = jnp.max(logits, axis=1, keepdims=True)
    at = jnp.argmax(logits, axis=1, keepdims=True).astype(jnp.int32) + offset
    return over_parts(
        jax.lax.pmin, jnp.where(largest == over_parts(jax.lax.pmax, largest), at, jnp.iinfo(jnp.int32).max)
    )
