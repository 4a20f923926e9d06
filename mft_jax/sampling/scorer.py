"""Scores given texts for chosen speakers: how likely each token is to each of them, and pooled hidden states."""

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

    speaker: str | None  # whose adapter; None: the base model
    tokens: Sequence[int]
    pooled: Sequence[bool] | None = None  # the tokens whose hidden states are averaged; None: all


@dataclasses.dataclass(frozen=True)
class Score:
    log_probs: Float[np.ndarray, "T"]  # nats, of each token given those before it; 0 for the first
    pooled: Float[np.ndarray, "D"]  # mean of the last hidden states of the pooled tokens


def score_texts(
    programs: Programs,
    base: nnx.State,
    texts: Sequence[Text],
    society: Society = Society(),  # noqa: B008  (frozen)
    *,
    rows: int = 8,
) -> list[Score]:
    """Scores in the order of the texts. `rows` texts of each speaker are scored together: a matter of speed and memory.

    Raises UserError for a text that is longer than the model's context.
    """
    longest = max((len(text.tokens) for text in texts), default=0)
    if longest > programs.model.max_positions:
        raise UserError(
            f"A text to score has {longest} tokens, but the model's context holds {programs.model.max_positions}: "
            "shorten it."
        )
    scores: dict[int, Score] = {}
    for adapted in (False, True):
        own = [index for index, text in enumerate(texts) if (text.speaker is not None) == adapted]
        asked = {texts[index].speaker for index in own}
        speakers: list[str | None] = [name for name in society.names if name in asked] if adapted else [None]
        queues = {name: sorted(_of(own, texts, name), key=lambda i: len(texts[i].tokens)) for name in speakers}
        while any(queues.values()):
            batch = {name: [queue.pop() for _ in range(min(rows, len(queue)))] for name, queue in queues.items()}
            scores.update(_score_batch(programs, base, texts, society if adapted else None, batch, rows))
    return [scores[index] for index in range(len(texts))]


def _of(indices: Sequence[int], texts: Sequence[Text], speaker: str | None) -> list[int]:
    return [index for index in indices if texts[index].speaker == speaker]


def _score_batch(
    programs: Programs,
    base: nnx.State,
    texts: Sequence[Text],
    society: Society | None,
    batch: dict[str | None, list[int]],
    rows: int,
) -> dict[int, Score]:
    """Up to `rows` texts of every speaker in one call."""
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
