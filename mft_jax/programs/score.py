"""The programs that score given texts: token log-probabilities, pooled hidden states, and divergences of two models."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter
from mft_jax.programs.arrays import AnyArray
from mft_jax.programs.over_agents import over_agents

MAX_LOGITS = 2**26  # most elements of logits [A, B, chunk, V] in memory at once: 256 MiB in float32


class Texts(NamedTuple):
    """Texts to score, one per row, padded on the right."""

    tokens: Int[AnyArray, "A B T"]
    lengths: Int[AnyArray, "A B"]  # 0: no text
    pooled: Bool[AnyArray, "A B T"]  # True for the tokens whose hidden states are averaged


class Scores(NamedTuple):
    """The scores of a batch of `Texts`."""

    # Of token t given the tokens before it, in nats; 0 for the first token and for padding.
    log_probs: Float[Array, "A B T"]
    # Mean over the pooled tokens of the hidden states after the last norm, in float32; 0 if no token is pooled.
    pooled: Float[Array, "A B D"]


def score(graphdef: nnx.GraphDef, base: nnx.State, adapters: Adapter | None, texts: Texts) -> Scores:
    """Scores the texts of each agent with that agent's adapter, or with the base model if `adapters` is None."""
    model = nnx.merge(graphdef, base)
    chunk = _chunk_size(texts, model.config.vocab_size)

    def score_agent(adapter: Adapter | None, *own: Array) -> Scores:
        return _score_rows(model, adapter, Texts(*own), chunk)

    with jax.named_scope("score"):
        return over_agents(model.mesh, score_agent, adapters, *texts)


def divergence(
    graphdef: nnx.GraphDef, base: nnx.State, adapters: Adapter, others: Adapter | None, texts: Texts
) -> Float[Array, "A B T"]:
    """KL(own || other) in nats between the distributions of each token of a text, given the tokens before it.

    "own" is the model with each agent's adapter, "other" the one with its other adapter, or the base model if `others`
    is None. The sum over the vocabulary is exact. It is 0 for the first token and for padding.
    """
    model = nnx.merge(graphdef, base)
    chunk = _chunk_size(texts, 2 * model.config.vocab_size)

    def compare_agent(adapter: Adapter | None, other: Adapter | None, *own: Array) -> Float[Array, "B T"]:
        return _diverge_rows(model, adapter, other, Texts(*own), chunk)

    with jax.named_scope("divergence"):
        if others is None:
            return over_agents(model.mesh, lambda adapter, *own: compare_agent(adapter, None, *own), adapters, *texts)
        return over_agents(model.mesh, compare_agent, adapters, others, *texts)


def _chunk_size(texts: Texts, logits: int) -> int:
    """The number of tokens of each row whose logits are computed at a time, with `logits` elements per token."""
    agents, rows, time = texts.tokens.shape
    return max(1, min(time, MAX_LOGITS // (agents * rows * logits)))


def _diverge_rows(
    model: Decoder, own: Adapter | None, other: Adapter | None, texts: Texts, chunk: int
) -> Float[Array, "B T"]:
    """The divergences of one agent's rows, computing the logits of `chunk` tokens of each row at a time."""
    tokens, lengths, _ = map(jnp.asarray, texts)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    inside = positions < lengths[:, None]
    states = [model.hidden(tokens, positions, inside.astype(jnp.int32), adapter) for adapter in (own, other)]

    def divergences(part: tuple[Array, Array]) -> Float[Array, "B C"]:
        own_logs, other_logs = (jax.nn.log_softmax(model.logits(hidden), axis=-1) for hidden in part)
        return jnp.sum(jnp.exp(own_logs) * (own_logs - other_logs), axis=-1)

    found = _map_chunks(divergences, chunk, *states)
    return jnp.where(inside & (positions > 0), jnp.roll(found, 1, axis=1), 0.0)


def _score_rows(model: Decoder, adapter: Adapter | None, texts: Texts, chunk: int) -> Scores:
    """Scores one agent's rows, computing the logits of `chunk` tokens of each row at a time."""
    tokens, lengths, pooled = map(jnp.asarray, texts)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    inside = positions < lengths[:, None]
    hidden = model.hidden(tokens, positions, inside.astype(jnp.int32), adapter)
    following = jnp.roll(tokens, -1, axis=1)

    def log_probs(part: tuple[Array, Array]) -> Float[Array, "B C"]:
        states, ids = part
        logits = model.logits(states)
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    scored = _map_chunks(log_probs, chunk, hidden, following)
    scored = jnp.where(inside & (positions > 0), jnp.roll(scored, 1, axis=1), 0.0)
    weight = (pooled & inside).astype(jnp.float32)
    mean = jnp.einsum("btd,bt->bd", hidden.astype(jnp.float32), weight) / jnp.maximum(weight.sum(axis=1), 1)[:, None]
    return Scores(scored, mean)


def _map_chunks(function: Callable[..., Array], chunk: int, *arrays: Array) -> Array:
    """`function` of a tuple of arrays [B, T, ...] -> [B, T], computed for `chunk` tokens of each row at a time."""
    rows, time = arrays[0].shape[:2]
    split = lambda x: jnp.moveaxis(_pad_to_multiple(x, chunk).reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)
    parts = jax.lax.map(function, tuple(map(split, arrays)))
    return jnp.moveaxis(parts, 0, 1).reshape(rows, -1)[:, :time]


def _pad_to_multiple(x: Array, multiple: int) -> Array:
    """`x` [B, T, ...], padded with zeros along T to the next multiple of `multiple`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *((0, 0),) * (x.ndim - 2)))
