"""The program that decodes tokens in all slots at once, many tokens per call."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, Unstacked
from mft_jax.parallel.mesh import sharding
from mft_jax.programs.choose import Choice, choose
from mft_jax.programs.choose_split import choose_split
from mft_jax.programs.over_agents import for_sampling, over_agents
from mft_jax.programs.slots import Settings, Slots, View


def decode(
    graphdef: nnx.GraphDef, base: nnx.State, adapters: Adapter | None, slots: Slots, settings: Settings
) -> tuple[Slots, View]:
    """Decodes until `settings.steps` tokens per row are done, no row is active, or free slots should be refilled.

    Slots should be refilled once every agent has `settings.refill` free slots on every device of the data axis: not
    earlier, because a prefill has places for all agents and devices and computes the empty ones too. Returns the slots,
    and the part of them that the host reads.
    """
    model = nnx.merge(graphdef, base)
    updates = for_sampling(model, adapters)
    needed = jnp.asarray(settings.refill)
    any_waits = jnp.any(needed > 0)  # in the loop, the devices would exchange this too for each token

    def unfinished(carry: tuple[Array, Slots]) -> Array:
        step, slots = carry
        free = jnp.sum(~slots.active.reshape(*needed.shape, -1), axis=-1)
        # The only sum over devices: in how many places slots are too few for a refill, and all free slots.
        lacking, all_free = jnp.sum(jnp.stack([free < needed, free]), axis=(1, 2))
        refill = any_waits & (lacking == 0)
        return (step < settings.steps) & (all_free < slots.active.size) & ~refill

    def advance(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        step, slots = carry
        return step + 1, decode_token(model, updates, slots, settings)

    steps, slots = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), slots))
    return slots, View(slots.active, slots.count, slots.output, slots.log_probs, slots.failed, steps)


def decode_token(model: Decoder, adapters: Adapter | Unstacked | None, slots: Slots, settings: Settings) -> Slots:
    """Decodes one token for every active row. Inactive rows are computed too, but their results are discarded."""
    step = functools.partial(next_logits, model, jnp.asarray(settings.long))
    logits, keys, values = over_agents(
        model.mesh, step, adapters, slots.keys, slots.values, slots.token, slots.position
    )
    choice = _choose_tokens(logits, slots, settings, model.mesh)
    token, active = choice.token, slots.active & choice.finite
    put = jax.vmap(jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop")))
    place = jnp.where(active, slots.count, slots.output.shape[-1])  # an index past the end is dropped
    count = slots.count + active
    stopped = jnp.any(token[..., None] == settings.stop_ids, axis=-1)
    proceeds = active & ~stopped & (count < slots.limit)
    log_probs = slots.log_probs
    if log_probs.shape[-1]:
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        log_probs = put(log_probs, place, chosen - jax.nn.logsumexp(logits, axis=-1))
    return slots._replace(
        keys=keys,
        values=values,
        token=jnp.where(active, token, slots.token),
        position=slots.position + proceeds,
        active=proceeds,
        count=count,
        output=put(slots.output, place, token),
        log_probs=log_probs,
        failed=slots.failed | (slots.active & ~choice.finite),
    )


def _choose_tokens(logits: Float[Array, "A B V"], slots: Slots, settings: Settings, mesh: Mesh | None) -> Choice:
    """Chooses the next token of every slot; the fields of the result are [A, B]."""
    temperature, top_p = jnp.asarray(settings.temperature), jnp.asarray(settings.top_p)
    with jax.named_scope("choose"):
        if mesh is not None and mesh.devices.flat[0].platform == "tpu":
            return choose_split(logits, slots.key, slots.count, temperature, top_p, mesh)
        arguments = logits, slots.key, slots.count, slots.active, temperature, top_p
        if mesh is None or mesh.size == 1:
            return _choose_together(*arguments)
        # Each device chooses for its own rows. The compiler would gather all rows on all devices.
        rows = sharding(mesh, "agent", "batch", shape=slots.active.shape).spec
        taken = (*(rows,) * 4, PartitionSpec(), PartitionSpec())
        return jax.shard_map(_choose_together, mesh=mesh, in_specs=taken, out_specs=rows, check_vma=False)(*arguments)


def _choose_together(
    logits: Float[Array, "A B V"],
    keys: UInt32[Array, "A B 2"],
    index: Int[Array, "A B"],
    active: Bool[Array, "A B"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Choice:
    """`choose` for the rows of all agents as one batch."""
    flat = (x.reshape(-1, *x.shape[2:]) for x in (logits, keys, index, active))
    return Choice(*(part.reshape(active.shape) for part in choose(*flat, temperature, top_p)))


def next_logits(
    model: Decoder,
    long: Bool[Array, ""],
    adapter: Adapter | Unstacked | None,
    keys: tuple[Float[Array, "B K _ _"], ...],
    values: tuple[Float[Array, "B K S _"], ...],
    token: Int[Array, " B"],
    position: Int[Array, " B"],
):
    """Runs the newest token of each of one agent's rows through the model.

    Returns the logits [B, V], and the KV cache with the keys and values of these tokens written at `position`.
    """
    config = model.config

    def attention(layer, q, k, v, earlier):
        output, *cache = model.backend.decode(
            q, k, v, *earlier, position,
            window=config.windows[layer], softcap=config.attention_softcap,
        )  # fmt: skip
        return output, cache

    earlier = tuple(zip(keys, values, strict=True))
    hidden, cache = model.run(token[:, None], position[:, None], adapter, attention, earlier=earlier, long=long)
    keys, values = zip(*cache, strict=True)
    return model.logits(hidden[:, 0]), keys, values
