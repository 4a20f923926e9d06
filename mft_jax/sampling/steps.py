"""The two compiled programs of sampling: `prefill` reads prompts into free slots, `decode` writes tokens in all of them."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.models.attention import attend, causal_attention, transposed, visible
from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter
from mft_jax.sampling.choose import choose
from mft_jax.sampling.slots import Settings, Slots, View


def prefill(
    graphdef: nnx.GraphDef,
    base: nnx.State,
    adapters: Adapter | None,
    slots: Slots,
    prompts: Int[Array, "A P T"],
    lengths: Int[Array, "A P"],
    into: Int[Array, "A P"],
    counts: Int[Array, "A P"],
    limits: Int[Array, "A P"],
    seeds: UInt32[Array, "A P 2"],
    long: Bool[Array, ""],
) -> Slots:
    """Reads prompts, padded on the right, into the slots `into`; the entry B, one past the last slot, means: no prompt.

    The last `counts` tokens of a prompt are new tokens already, of an answer that is gone on with.
    """
    model = nnx.merge(graphdef, base)
    keys, values = _over_agents(functools.partial(_read, model, long), adapters)(adapters, prompts)
    put = jax.vmap(lambda old, rows, new: old.at[rows].set(new, mode="drop"))
    put_columns = jax.vmap(lambda old, rows, new: old.at[rows, :, :, : new.shape[-1]].set(new, mode="drop"))
    put_rows = jax.vmap(lambda old, rows, new: old.at[rows, :, : new.shape[-2]].set(new, mode="drop"))
    last = jnp.maximum(lengths - 1, 0)
    token = jnp.take_along_axis(prompts, last[..., None], axis=-1)[..., 0]
    return Slots(
        keys=tuple(put_columns(old, into, new) for old, new in zip(slots.keys, keys, strict=True)),
        values=tuple(put_rows(old, into, new) for old, new in zip(slots.values, values, strict=True)),
        token=put(slots.token, into, token),
        position=put(slots.position, into, last),
        active=put(slots.active, into, limits > counts),
        count=put(slots.count, into, counts),
        limit=put(slots.limit, into, limits),
        seed=put(slots.seed, into, seeds),
        output=slots.output,
    )


def decode(
    graphdef: nnx.GraphDef, base: nnx.State, adapters: Adapter | None, slots: Slots, settings: Settings
) -> tuple[Slots, View]:
    """Decodes until `settings.steps` tokens are written, no row is active, or enough rows are free to be refilled."""
    model = nnx.merge(graphdef, base)

    def wanted(carry: tuple[Array, Slots]) -> Array:
        step, slots = carry
        free = jnp.sum(~slots.active, axis=1)
        refill = (settings.pending > 0) & (free >= jnp.minimum(settings.pending, settings.prefill_rows))
        return (step < settings.steps) & jnp.any(slots.active) & ~jnp.any(refill)

    def advance(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        step, slots = carry
        return step + 1, _advance(model, adapters, slots, settings)

    slots = jax.lax.while_loop(wanted, advance, (jnp.int32(0), slots))[1]
    return slots, View(slots.active, slots.count, slots.output)


def _advance(model: Decoder, adapters: Adapter | None, slots: Slots, settings: Settings) -> Slots:
    """One token for every active row; a free row computes too, and nothing of it is kept."""
    step = functools.partial(_write, model, settings.long)
    logits, keys, values = _over_agents(step, adapters)(adapters, slots.keys, slots.values, slots.token, slots.position)
    agents, rows = slots.token.shape
    with jax.named_scope("choose"):
        token = choose(
            logits.reshape(agents * rows, -1),
            slots.seed.reshape(agents * rows, 2),
            slots.count.reshape(-1),
            settings.temperature,
            settings.top_p,
        ).reshape(agents, rows)
    put = jax.vmap(jax.vmap(lambda output, at, new: output.at[at].set(new, mode="drop")))
    output = put(slots.output, jnp.where(slots.active, slots.count, slots.output.shape[-1]), token)
    count = slots.count + slots.active
    stopped = jnp.any(token[..., None] == settings.stop_ids, axis=-1)
    active = slots.active & ~stopped & (count < slots.limit)
    return slots._replace(
        keys=keys,
        values=values,
        token=jnp.where(slots.active, token, slots.token),
        position=slots.position + active,
        active=active,
        count=count,
        output=output,
    )


def _over_agents(function, adapters: Adapter | None):
    """Maps over the agents' rows, and over their adapters when there are any; the base is never mapped."""
    mapped = jax.vmap(lambda adapter, *rows: function(adapter, *rows), in_axes=0)
    return mapped if adapters is not None else lambda _, *rows: jax.vmap(functools.partial(function, None))(*rows)


def _read(model: Decoder, long: Bool[Array, ""], adapter: Adapter | None, tokens: Int[Array, "P T"]):
    """Keys and values of whole prompts, for one agent: a [P, K, H, T] and a [P, K, T, H] leaf for every layer."""
    keys, values = [], []
    one_segment, config = jnp.zeros_like(tokens), model.config

    def attention(layer, q, k, v):
        k, v = transposed(k, v)
        keys.append(k)
        values.append(v)
        return causal_attention(q, k, v, one_segment, window=config.windows[layer], softcap=config.attention_softcap)

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.named_scope("prefill"):
        model.run(tokens, positions, adapter, attention, long=long)
    return tuple(keys), tuple(values)


def _write(
    model: Decoder,
    long: Bool[Array, ""],
    adapter: Adapter | None,
    keys: tuple[Float[Array, "B K H S"], ...],
    values: tuple[Float[Array, "B K S H"], ...],
    token: Int[Array, " B"],
    position: Int[Array, " B"],
):
    """The newest token of one agent's rows through the model: its logits, and the cache with it written in."""
    new_keys, new_values, config = list(keys), list(values), model.config
    columns = jnp.arange(values[0].shape[-2])
    masks = {window: visible(position[:, None], columns, window)[:, None] for window in set(config.windows)}

    def attention(layer, q, k, v):
        k, v = transposed(k, v)
        new_keys[layer] = _put(keys[layer], k.astype(keys[layer].dtype), position, axis=3)
        new_values[layer] = _put(values[layer], v.astype(values[layer].dtype), position, axis=2)
        mask = masks[config.windows[layer]]
        return attend(q, new_keys[layer], new_values[layer], mask, config.attention_softcap)

    hidden = model.run(token[:, None], position[:, None], adapter, attention, long=long)
    return model.logits(hidden[:, 0]), tuple(new_keys), tuple(new_values)


def _put(
    cache: Float[Array, "B K _ _"], new: Float[Array, "B K _ _"], position: Int[Array, " B"], axis: int
) -> Float[Array, "B K _ _"]:
    """The cache with each row's `new`, of size 1 along `axis`, at the row's own position there.

    TPUs would make of an update in place a loop over rows between two copies of the cache.
    """
    update, choose = functools.partial(put_in_place, axis=axis), functools.partial(put_by_choice, axis=axis)
    return jax.lax.platform_dependent(cache, new, position, tpu=choose, default=update)


def put_in_place(cache: Array, new: Array, position: Array, axis: int) -> Array:
    """Writes one column of each row, and nothing else."""
    update = lambda cache, new, at: jax.lax.dynamic_update_slice_in_dim(cache, new, at, axis - 1)
    return jax.vmap(update)(cache, new, position)


def put_by_choice(cache: Array, new: Array, position: Array, axis: int) -> Array:
    """The same by an element-wise choice, which fuses with the attention that reads the cache."""
    here = jax.lax.broadcasted_iota(jnp.int32, cache.shape, axis) == jnp.expand_dims(position, (1, 2, 3))
    return jnp.where(here, new, cache)
