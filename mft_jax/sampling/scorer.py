"""Scores given texts under chosen speakers: the log-probability of every token, and pooled hidden states."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from mft_jax.errors import UserError
from mft_jax.models.society import Society
from mft_jax.parallel.mesh import sharding
from mft_jax.programs import Programs
from mft_jax.programs.score import Texts
from mft_jax.programs.slots import bucket


@dataclasses.dataclass(frozen=True)
class Text:
    """One text to score."""

    speaker: str | None  # name of the adapter; None: the base model
    tokens: Sequence[int]
    pooled: Sequence[bool] | None = None  # True for the tokens whose hidden states are averaged; None: all tokens


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one text."""

    log_probs: Float[np.ndarray, "T"]  # of each token given the tokens before it, in nats; 0 for the first token
    pooled: Float[np.ndarray, "D"]  # mean over the pooled tokens of the hidden states after the last norm


def score_texts(
    programs: Programs,
    base: nnx.State,
    texts: Sequence[Text],
    society: Society = Society(),  # noqa: B008  (frozen)
    *,
    rows: int = 8,
) -> list[Score]:
    """Scores every text and returns the scores in the order of the texts.

    `rows` texts of each speaker are scored in one batch. It changes speed and memory only. Raises UserError for a text
    that is longer than the model's context.
    """
    longest = max((len(text.tokens) for text in texts), default=0)
    if longest > programs.model.max_positions:
        raise UserError(
            f"A text to score has {longest} tokens, but the model's context is {programs.model.max_positions} tokens: "
            "shorten the text."
        )
    scores: dict[int, Score] = {}
    for adapted in (False, True):
        own = [index for index, text in enumerate(texts) if (text.speaker is not None) == adapted]
        asked = {texts[index].speaker for index in own}
        speakers: list[str | None] = [name for name in society.names if name in asked] if adapted else [None]
        queues = {name: sorted(_indices_of(own, texts, name), key=lambda i: len(texts[i].tokens)) for name in speakers}
        while any(queues.values()):
            batch = {name: [queue.pop() for _ in range(min(rows, len(queue)))] for name, queue in queues.items()}
            scores.update(_score_batch(programs, base, texts, society if adapted else None, batch, rows))
    return [scores[index] for index in range(len(texts))]


def _indices_of(indices: Sequence[int], texts: Sequence[Text], speaker: str | None) -> list[int]:
    return [index for index in indices if texts[index].speaker == speaker]


def _score_batch(
    programs: Programs,
    base: nnx.State,
    texts: Sequence[Text],
    society: Society | None,
    batch: dict[str | None, list[int]],
    rows: int,
) -> dict[int, Score]:
    """Scores up to `rows` texts of every speaker in one call. Returns the scores by the index of the text."""
    mesh, names = programs.mesh, list(batch)
    lanes = -(-len(names) // mesh.shape["agent"]) * mesh.shape["agent"]
    longest = max(len(texts[i].tokens) for own in batch.values() for i in own)
    size = (lanes, -(-rows // mesh.shape["data"]) * mesh.shape["data"], bucket(longest))
    given = Texts(np.zeros(size, np.int32), np.zeros(size[:2], np.int32), np.zeros(size, bool))
    for lane, own in enumerate(batch.values()):
        for row, index in enumerate(own):
            text, length = texts[index], len(texts[index].tokens)
            given.tokens[lane, row, :length] = text.tokens
            given.lengths[lane, row] = length
            given.pooled[lane, row, :length] = True if text.pooled is None else text.pooled
    stacked = [str(name) for name in names] + [str(names[0])] * (lanes - len(names))
    adapters = None if society is None else society.stack(stacked)
    found = jax.device_get(programs.score(base, adapters, jax.device_put(given, sharding(mesh, "agent", "batch"))))
    return {
        index: Score(found.log_probs[lane, row, : len(texts[index].tokens)], found.pooled[lane, row])
        for lane, own in enumerate(batch.values())
        for row, index in enumerate(own)
    }
