"""The program that prefills free slots with prompts."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, Unstacked
from mft_jax.parallel.mesh import RULES, sharding
from mft_jax.programs.arrays import AnyArray
from mft_jax.programs.over_agents import for_sampling, over_agents
from mft_jax.programs.slots import Prompts, Slots


def prefill(
    graphdef: nnx.GraphDef,
    base: nnx.State,
    adapters: Adapter | None,
    slots: Slots,
    prompts: Prompts,
    long: Bool[Array, ""],
) -> Slots:
    """Computes the KV cache of `prompts` and writes it, with their limits and keys, into their slots.

    The other slots are unchanged. `long` is as in `Settings`.
    """
    model = nnx.merge(graphdef, base)
    cache_of = functools.partial(prompt_cache, model, long)
    keys, values = over_agents(model.mesh, cache_of, for_sampling(model, adapters), prompts.tokens)
    prompts = Prompts(*map(jnp.asarray, prompts))
    put, last = functools.partial(write_rows, model.mesh, prompts.into), jnp.maximum(prompts.lengths - 1, 0)
    return slots._replace(
        keys=tuple(map(put, slots.keys, keys)),
        values=tuple(map(put, slots.values, values)),
        token=put(slots.token, jnp.take_along_axis(prompts.tokens, last[..., None], axis=-1)[..., 0]),
        position=put(slots.position, last),
        active=put(slots.active, prompts.limits > prompts.counts),
        count=put(slots.count, prompts.counts),
        limit=put(slots.limit, prompts.limits),
        key=put(slots.key, prompts.keys),
        failed=put(slots.failed, jnp.zeros_like(prompts.into, bool)),
    )


def write_rows(
    mesh: Mesh | None, into: Int[AnyArray, "A P"], old: Shaped[Array, "A B ..."], new: Shaped[AnyArray, "A P ..."]
) -> Shaped[Array, "A B ..."]:
    """Writes each row of `new` into row `into` of `old`; an index past the last row is dropped.

    Where `new` is shorter than `old` along other axes, only the first elements are written. On a mesh, a row must be
    written on the device that holds it: `into` of the first P / D rows must be in the first B / D rows, and so on, for the
    D devices of the data axis. So the keys and values of prompts never move between devices.
    """

    def write(into: Array, old: Array, new: Array) -> Array:
        first = tuple(slice(0, size) for size in new.shape[2:])
        return jax.vmap(lambda old, rows, new: old.at[rows, *first].set(new, mode="drop"))(old, into, new)

    into, new = jnp.asarray(into), jnp.asarray(new)
    if mesh is None or mesh.size == 1:
        return write(into, old, new)

    def write_own(into: Array, old: Array, new: Array) -> Array:
        own = into - jax.lax.axis_index(RULES["batch"]) * old.shape[1]
        return write(jnp.where((own >= 0) & (own < old.shape[1]), own, old.shape[1]), old, new)

    heads = "kv_heads" if old.ndim == 5 else None  # the KV cache [A, B, K, _, _]
    rest = (heads, None, None)[: old.ndim - 2]
    at = sharding(mesh, "agent", "batch", *rest, shape=old.shape).spec
    rows = PartitionSpec(*at[:2])
    return jax.shard_map(write_own, mesh=mesh, in_specs=(rows, at, at), out_specs=at, check_vma=False)(into, old, new)


def prompt_cache(model: Decoder, long: Bool[Array, ""], adapter: Adapter | Unstacked | None, tokens: Int[Array, "P T"]):
    """The keys and values of one agent's prompts in the layout of the cache, with T columns, one array per layer."""
    config = model.config

    def attention(layer, q, k, v):
        output = model.backend.causal(q, k, v, None, window=config.windows[layer], softcap=config.attention_softcap)
        return output, model.backend.to_cache(k, v)

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.named_scope("prefill"):
        _, cache = model.run(tokens, positions, adapter, attention, long=long)
    keys, values = zip(*cache, strict=True)
    return keys, values
