"""Scores given texts under chosen speakers: log-probabilities of tokens, pooled hidden states, and divergences."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from mft_jax.errors import UserError
from mft_jax.models.lora import Adapter
from mft_jax.models.society import Society
from mft_jax.parallel.hosts import stop_if_asked
from mft_jax.parallel.mesh import sharding
from mft_jax.parallel.placement import to_devices
from mft_jax.programs import Programs
from mft_jax.programs.score import Texts
from mft_jax.programs.slots import bucket

T = TypeVar("T")


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


@dataclasses.dataclass(frozen=True)
class ComparedText:
    """One text on which two speakers are compared."""

    speaker: str | None  # name of the adapter; None: the base model
    other: str | None
    tokens: Sequence[int]


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
    that is longer than the model's context, KeyError for a speaker that is not in the society, and ValueError for a token
    that the model does not have.
    """
    _check_lengths(texts, programs)
    _check_tokens(texts, programs)
    for name in {text.speaker for text in texts} - {None, *society.names}:
        society.index(str(name))  # raises KeyError
    scores: dict[int, Score] = {}
    for adapted in (False, True):
        asked = {text.speaker for text in texts if (text.speaker is not None) == adapted}
        speakers = [name for name in (society.names if adapted else (None,)) if name in asked]
        queues = {
            name: _longest_last([i for i, text in enumerate(texts) if text.speaker == name], texts) for name in speakers
        }
        for batch in _batches(queues, rows):
            lanes, given = _pack(programs, texts, list(batch.values()), rows)
            adapters = _stack(society, list(batch), lanes, programs) if adapted else None
            stop_if_asked()
            found = jax.device_get(programs.score(base, adapters, given))
            for lane, row, index in _places(batch):
                length = len(texts[index].tokens)
                scores[index] = Score(found.log_probs[lane, row, :length], found.pooled[lane, row])
    return [scores[index] for index in range(len(texts))]


def compare_speakers(
    programs: Programs, base: nnx.State, texts: Sequence[ComparedText], society: Society, *, rows: int = 8
) -> list[Float[np.ndarray, "T"]]:
    """KL(speaker || other) of the distribution of every token of each text, in nats; 0 for the first token.

    It is exactly 0, without computing, if both speakers are the same. `rows` is as in `score_texts`. Raises UserError
    for a text that is longer than the model's context, and ValueError if only the first speaker is the base model.
    """
    _check_lengths(texts, programs)
    found = [np.zeros(len(text.tokens), np.float32) for text in texts]
    for to_base in (False, True):
        asked = [i for i, text in enumerate(texts) if text.speaker != text.other and (text.other is None) == to_base]
        pairs = dict.fromkeys((texts[i].speaker, texts[i].other) for i in asked)
        if any(speaker is None for speaker, _ in pairs):
            raise ValueError("the base model cannot be compared with an adapter, only an adapter with the base model")
        queues = {
            pair: _longest_last([i for i in asked if (texts[i].speaker, texts[i].other) == pair], texts)
            for pair in pairs
        }
        for batch in _batches(queues, rows):
            lanes, given = _pack(programs, texts, list(batch.values()), rows)
            speakers = _stack(society, [speaker for speaker, _ in batch], lanes, programs)
            others = None if to_base else _stack(society, [other for _, other in batch], lanes, programs)
            stop_if_asked()
            divergences = programs.divergence(base, speakers, others, given)
            values = jax.device_get(divergences)
            for lane, row, index in _places(batch):
                found[index] = values[lane, row, : len(texts[index].tokens)]
    return found


def _stack(society: Society, speakers: Sequence[str | None], lanes: int, programs: Programs) -> Adapter:
    """The adapters of these speakers, none of which is the base model, for `lanes` lanes."""
    return society.stack(_fill([str(name) for name in speakers], lanes), programs.dtype)


def _check_lengths(texts: Sequence[Text | ComparedText], programs: Programs) -> None:
    longest = max((len(text.tokens) for text in texts), default=0)
    if longest > programs.model.max_positions:
        raise UserError(
            f"A text to score has {longest} tokens, but the model's context is {programs.model.max_positions} tokens: "
            "shorten the text."
        )


def _check_tokens(texts: Sequence[Text], programs: Programs) -> None:
    size = programs.model.vocab_size
    ends = (end for text in texts if len(text.tokens) for end in (min(text.tokens), max(text.tokens)))
    strange = next((token for token in ends if not 0 <= token < size), None)
    if strange is not None:
        raise ValueError(f"a text to score has the token id {strange}, but those of the model are 0 to {size - 1}")


def _longest_last(indices: list[int], texts: Sequence[Text | ComparedText]) -> list[int]:
    return sorted(indices, key=lambda index: len(texts[index].tokens))


def _batches(queues: dict[T, list[int]], rows: int) -> Iterator[dict[T, list[int]]]:
    """Up to `rows` texts from the end of every queue, until all queues are empty."""
    while any(queues.values()):
        yield {name: [queue.pop() for _ in range(min(rows, len(queue)))] for name, queue in queues.items()}


def _pack(
    programs: Programs, texts: Sequence[Text | ComparedText], batch: Sequence[Sequence[int]], rows: int
) -> tuple[int, Texts]:
    """(number of lanes, the texts of a batch on their devices): a lane for each list of indices, up to `rows` each."""
    mesh = programs.mesh
    lanes = -(-len(batch) // mesh.shape["agent"]) * mesh.shape["agent"]
    longest = max(len(texts[index].tokens) for own in batch for index in own)
    size = (lanes, -(-rows // mesh.shape["data"]) * mesh.shape["data"], bucket(longest))
    given = Texts(np.zeros(size, np.int32), np.zeros(size[:2], np.int32), np.zeros(size, bool))
    for lane, own in enumerate(batch):
        for row, index in enumerate(own):
            text, length = texts[index], len(texts[index].tokens)
            pooled = text.pooled if isinstance(text, Text) else None
            given.tokens[lane, row, :length] = text.tokens
            given.lengths[lane, row] = length
            given.pooled[lane, row, :length] = True if pooled is None else pooled
    return lanes, to_devices(given, sharding(mesh, "agent", "batch"))


def _fill(names: list[str], lanes: int) -> list[str]:
    return names + names[:1] * (lanes - len(names))


def _places(batch: dict[T, list[int]]) -> Iterator[tuple[int, int, int]]:
    """(lane, row, index of the text) of every text of a batch."""
    for lane, own in enumerate(batch.values()):
        for row, index in enumerate(own):
            yield lane, row, index
