"""A Pallas TPU kernel that writes the keys and values of prompts into the KV cache, for a loop over the layers.

Each layer has arrays of its own in the cache. XLA cannot choose one of them by a computed number and write into it without
copying all of them. Keeping the keys and values of all layers until the loop has ended takes as much memory as the activations.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mft_jax.models.decode_kernel import in_hbm, shape_in_hbm


def write_prompts(
    cache: Sequence[Float[Array, "A B J S H"]],
    new: Sequence[Float[Array, "C J T H"]],
    layer: Int[Array, ""],
    agent: Int[Array, ""],
    into: Int[Array, " P"],
    source: Int[Array, " P"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "A B J S H"], ...]:
    """Copies prompt `source[p]` of `new` into the first T columns of row `into[p]` of one agent, for each p.

    `new` are the keys and the values of this layer; `cache` has two arrays for each layer too, one after the other. An `into` of
    B is dropped. The cache is updated in place if the caller donates it. `interpret` runs the kernel on any platform, slowly.
    """
    count, moved = len(cache), sum(array.nbytes for array in new) * into.shape[0] // new[0].shape[0]
    where_it_is = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        functools.partial(_kernel, count=count),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            in_specs=[where_it_is] * (len(new) + count),
            out_specs=[where_it_is] * count,
            scratch_shapes=[pltpu.SemaphoreType.DMA],
        ),
        out_shape=[shape_in_hbm(array, interpret) for array in cache],
        input_output_aliases={3 + len(new) + place: place for place in range(count)},
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=2 * moved),
        name="write_prompts",
        interpret=interpret,
    )
    return tuple(call(jnp.stack([layer, agent]), into, source, *new, *(in_hbm(array, interpret) for array in cache)))


def _kernel(layer_and_agent: Any, into: Any, source: Any, *refs: Any, count: int) -> None:
    """`refs` are the new keys and values, the `count` arrays of the cache as operands and as results, and a semaphore.

    All copies are started before the first is waited for. A wait is for the bytes of its copy, and those of all layers have
    equally many, so waiting needs no branch.
    """
    keys_and_values, cache, arrived = refs[: -1 - 2 * count], refs[-1 - count : -1], refs[-1]
    layer, agent = layer_and_agent[0], layer_and_agent[1]
    rows, columns = cache[0].shape[1], keys_and_values[0].shape[2]

    def copies(own: int, place: Array) -> Iterator[Any]:
        for part, prompts in enumerate(keys_and_values):
            row = cache[own * len(keys_and_values) + part].at[agent, into[place], :, pl.ds(0, columns), :]
            yield pltpu.make_async_copy(prompts.at[source[place]], row, arrived)

    def for_all(act: Callable[[Any], None], own: int) -> None:
        @pl.loop(0, into.shape[0])
        def _(place: Array) -> None:
            @pl.when(into[place] < rows)
            def _() -> None:
                for copy in copies(own, place):
                    act(copy)

    for own in range(count // len(keys_and_values)):
        pl.when(layer == own)(functools.partial(for_all, lambda copy: copy.start(), own))
    for_all(lambda copy: copy.wait(), 0)
