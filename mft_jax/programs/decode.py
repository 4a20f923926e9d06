"""The program that decodes tokens in all slots at once, many tokens per call."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, Unstacked
from mft_jax.programs.choose import Choice, choose
from mft_jax.programs.choose_split import choose_split
from mft_jax.programs.over_agents import for_sampling, over_agents
from mft_jax.programs.slots import Settings, Slots, View


def decode(
    graphdef: nnx.GraphDef, base: nnx.State, adapters: Adapter | None, slots: Slots, settings: Settings
) -> tuple[Slots, View]:
    """Decodes until `settings.steps` tokens per row are done, no row is active, or free slots should be refilled.

    Slots should be refilled once every agent with pending prompts has `settings.prefill_rows` free slots, or a free slot
    for each of its pending prompts: not earlier, because a prefill has places for all agents and computes the empty ones
    too. Returns the slots, and the part of them that the host reads.
    """
    model = nnx.merge(graphdef, base)
    updates = for_sampling(model, adapters)

    def unfinished(carry: tuple[Array, Slots]) -> Array:
        step, slots = carry
        free = jnp.sum(~slots.active, axis=1)
        pending = jnp.asarray(settings.pending)
        refill = jnp.any(pending > 0) & jnp.all(free >= jnp.minimum(pending, settings.prefill_rows))
        return (step < settings.steps) & jnp.any(slots.active) & ~refill

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
    agents, rows, _ = logits.shape
    temperature, top_p = jnp.asarray(settings.temperature), jnp.asarray(settings.top_p)
    with jax.named_scope("choose"):
        if mesh is not None and mesh.devices.flat[0].platform == "tpu":
            return choose_split(logits, slots.key, slots.count, temperature, top_p, mesh)
        choice = choose(
            logits.reshape(agents * rows, -1),
            slots.key.reshape(agents * rows, 2),
            slots.count.reshape(-1),
            slots.active.reshape(-1),
            temperature,
            top_p,
        )
    return Choice(*(part.reshape(agents, rows) for part in choice))


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

    def attention(layer, q, k, v):
        output, *cache = model.backend.decode(
            q, k, v, keys[layer], values[layer], position,
            window=config.windows[layer], softcap=config.attention_softcap,
        )  # fmt: skip
        return output, cache

    hidden, cache = model.run(token[:, None], position[:, None], adapter, attention, long=long)
    keys, values = zip(*cache, strict=True)
    return model.logits(hidden[:, 0]), keys, values
