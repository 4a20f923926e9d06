"""The programs that read prompts: `prefill` into free slots, and before it `read_prefix` what they have in common."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from mft_jax.models.attention_backend import PromptWriter
from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, Unstacked
from mft_jax.parallel.mesh import own_rows, sharding
from mft_jax.programs.arrays import AnyArray
from mft_jax.programs.over_agents import for_sampling, over_agents
from mft_jax.programs.slots import Prefix, Prompts, Slots


def prefill(
    graphdef: nnx.GraphDef,
    base: nnx.State,
    adapters: Adapter | None,
    slots: Slots,
    prompts: Prompts,
    long: Bool[Array, ""],
    prefix: Prefix | None = None,
) -> Slots:
    """Computes the KV cache of `prompts` and writes it, with their limits and keys, into their slots.

    The other slots are unchanged. `long` is as in `Settings`. `prefix` is what all prompts of an agent begin with.
    """
    model, prompts = nnx.merge(graphdef, base), Prompts(*map(jnp.asarray, prompts))
    updates, writer = for_sampling(model, adapters), model.backend.prompt_writer(*prompts.tokens.shape[1:])
    put = functools.partial(write_rows, model.mesh, prompts.into)
    copy = functools.partial(put, source=prompts.source)
    if writer is not None:
        keys, values = _read_by_agent(model, writer, updates, slots, prompts, long, prefix)
    else:
        cache_of = functools.partial(prompt_cache, model, long)
        read = (prompts.tokens,) if prefix is None else (prompts.tokens, prefix)
        new_keys, new_values = over_agents(model.mesh, cache_of, updates, *read)
        keys, values = tuple(map(copy, slots.keys, new_keys)), tuple(map(copy, slots.values, new_values))
    before, last = 0 if prefix is None else prefix[0][0].shape[1], prompts.lengths - 1
    return slots._replace(
        keys=keys,
        values=values,
        token=copy(slots.token, jnp.take_along_axis(prompts.tokens, last[..., None], axis=-1)[..., 0]),
        position=copy(slots.position, before + last),
        active=put(slots.active, prompts.limits > prompts.counts),
        count=put(slots.count, prompts.counts),
        limit=put(slots.limit, prompts.limits),
        key=put(slots.key, prompts.keys),
        failed=put(slots.failed, jnp.zeros_like(prompts.into, bool)),
    )


def _read_by_agent(
    model: Decoder,
    writer: PromptWriter,
    adapters: Adapter | Unstacked | None,
    slots: Slots,
    prompts: Prompts,
    long: Bool[Array, ""],
    prefix: Prefix | None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The keys and values of `slots` with those of `prompts`, for one agent after the other. Each layer is written at once."""
    agents, places = prompts.into.shape
    own = (
        prompts.source if prompts.tokens.shape[1] < places else jnp.broadcast_to(jnp.arange(places), prompts.into.shape)
    )

    def read(cache: Any, of_agent: Any) -> tuple[Any, None]:
        adapter, tokens, prefix, where = of_agent
        keep = lambda k, v, cache, layer_number: writer(cache, k, v, layer=layer_number, **where)
        return _run_prompts(model, long, adapter, tokens, prefix, keep, cache)[1], None

    where = {"agent": jnp.arange(agents), "into": prompts.into, "source": own}
    cache = tuple(zip(slots.keys, slots.values, strict=True))
    cache, _ = jax.lax.scan(read, cache, (adapters, prompts.tokens, prefix, where))
    keys, values = zip(*cache, strict=True)
    return keys, values


def read_prefix(
    graphdef: nnx.GraphDef,
    base: nnx.State,
    adapters: Adapter | None,
    tokens: Int[AnyArray, "A S"],
    long: Bool[Array, ""],
) -> Prefix:
    """The keys and values of the tokens that all prompts of an agent begin with. `long` is as in `Settings`."""
    model = nnx.merge(graphdef, base)

    def of_agent(adapter: Adapter | Unstacked | None, tokens: Int[Array, " S"]) -> Any:
        keep = lambda k, v: (k, v)
        _, kept = _run_prompts(model, long, adapter, tokens[None], None, keep)
        return tuple((k[0], v[0]) for k, v in kept)

    return over_agents(model.mesh, of_agent, for_sampling(model, adapters), jnp.asarray(tokens))


def write_rows(
    mesh: Mesh | None,
    into: Int[AnyArray, "A P"],
    old: Shaped[Array, "A B ..."],
    new: Shaped[AnyArray, "A C ..."],
    source: Int[AnyArray, "A P"] | None = None,
) -> Shaped[Array, "A B ..."]:
    """Writes rows of `new` into the rows `into` of `old`: each one, C = P, or those at `source`.

    An index past the last row is dropped. Where `new` is shorter than `old` along other axes, only the first elements are
    written. On a mesh, a row must be written on the device that holds it: `into` of the first P / D rows must be in the
    first B / D rows, `source` in the first C / D, and so on, for the D devices of the data axis. So the keys and values of
    prompts never move between devices.
    """

    def write(into: Array, source: Array | None, old: Array, new: Array) -> Array:
        first = tuple(slice(0, size) for size in new.shape[2:])
        if source is not None and source.shape[1] != new.shape[1]:
            new = jax.vmap(lambda new, at: new[at])(new, source)
        return jax.vmap(lambda old, rows, new: old.at[rows, *first].set(new, mode="drop"))(old, into, new)

    into, new, source = jnp.asarray(into), jnp.asarray(new), None if source is None else jnp.asarray(source)
    if mesh is None or mesh.size == 1:
        return write(into, source, old, new)

    def write_own(into: Array, source: Array | None, old: Array, new: Array) -> Array:
        source = None if source is None else own_rows(source, new.shape[1])
        return write(own_rows(into, old.shape[1]), source, old, new)

    heads = "kv_heads" if old.ndim == 5 else None  # the KV cache [A, B, K, _, _]
    rest = (heads, None, None)[: old.ndim - 2]
    at = sharding(mesh, "agent", "batch", *rest, shape=old.shape).spec
    rows = PartitionSpec(*at[:2])
    return jax.shard_map(write_own, mesh=mesh, in_specs=(rows, rows, at, at), out_specs=at, check_vma=False)(
        into, source, old, new
    )


def prompt_cache(
    model: Decoder,
    long: Bool[Array, ""],
    adapter: Adapter | Unstacked | None,
    tokens: Int[Array, "C T"],
    prefix: Prefix | None = None,
):
    """The keys and values of one agent's prompts in the layout of the cache, one array per layer, the prefix's included."""
    keys, values = zip(*_run_prompts(model, long, adapter, tokens, prefix, model.backend.to_cache)[1], strict=True)
    return keys, values


def _run_prompts(
    model: Decoder,
    long: Bool[Array, ""],
    adapter: Adapter | Unstacked | None,
    tokens: Int[Array, "C T"],
    prefix: Any,
    keep: Callable[..., Any],
    cache: Any = None,
):
    """Runs one agent's tokens that follow its prefix, if any, through the model. Returns as `Decoder.run`.

    `keep` gets the keys and values of each layer, [C, S + T, K, H], those of the prefix first, and if there is a `cache`, the
    cache and the number of the layer; its result is the second one of `Attention`.
    """
    config, before = model.config, 0 if prefix is None else prefix[0][0].shape[0]

    def attention(layer, q, k, v, earlier=None, **cached):
        if earlier is not None:
            shared = (jnp.broadcast_to(x, (tokens.shape[0], *x.shape)) for x in earlier)
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(shared, (k, v), strict=True))
        output = model.backend.causal(q, k, v, None, window=config.windows[layer], softcap=config.attention_softcap)
        return output, keep(k, v, **cached)

    positions = jnp.broadcast_to(before + jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.named_scope("prefill"):
        return model.run(tokens, positions, adapter, attention, earlier=prefix, cache=cache, long=long)
