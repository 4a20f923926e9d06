"""The program that prefills free slots with prompts."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from mft_jax.models.attention import causal_attention, transposed
from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter
from mft_jax.programs.over_agents import over_agents
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
    keys, values = over_agents(functools.partial(prompt_cache, model, long), adapters, prompts.tokens)
    prompts = Prompts(*map(jnp.asarray, prompts))
    into, last = prompts.into, jnp.maximum(prompts.lengths - 1, 0)
    put = jax.vmap(lambda old, rows, new: old.at[rows].set(new, mode="drop"))
    put_keys = jax.vmap(lambda old, rows, new: old.at[rows, :, :, : new.shape[-1]].set(new, mode="drop"))
    put_values = jax.vmap(lambda old, rows, new: old.at[rows, :, : new.shape[-2]].set(new, mode="drop"))
    return slots._replace(
        keys=tuple(put_keys(old, into, new) for old, new in zip(slots.keys, keys, strict=True)),
        values=tuple(put_values(old, into, new) for old, new in zip(slots.values, values, strict=True)),
        token=put(slots.token, into, jnp.take_along_axis(prompts.tokens, last[..., None], axis=-1)[..., 0]),
        position=put(slots.position, into, last),
        active=put(slots.active, into, prompts.limits > prompts.counts),
        count=put(slots.count, into, prompts.counts),
        limit=put(slots.limit, into, prompts.limits),
        key=put(slots.key, into, prompts.keys),
        failed=put(slots.failed, into, jnp.zeros_like(into, bool)),
    )


def prompt_cache(model: Decoder, long: Bool[Array, ""], adapter: Adapter | None, tokens: Int[Array, "P T"]):
    """The keys [P, K, H, T] and values [P, K, T, H] of one agent's prompts, one array per layer."""
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
