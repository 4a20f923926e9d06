"""Adds the log-probabilities that an objective compares with to training sets, before the first optimizer step.

They are written to disk with the training sets, so that a run that is resumed trains on the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mft_jax.errors import UserError
from mft_jax.finetuning.encoding import Part, encode_together
from mft_jax.finetuning.examples import Example
from mft_jax.models.chat import Chat
from mft_jax.models.society import Society
from mft_jax.programs.train import Objective
from mft_jax.sampling import Score, Text

Scorer = Callable[[Sequence[Text], Society], list[Score]]
Sets = dict[str, list[Example]]


def add_log_probs(
    sets: Mapping[str, Sequence[Example]],
    objective: Objective,
    score: Scorer,
    *,
    chat: Chat,
    row_tokens: int,
    sampled: Society,
    start: Society,
) -> Sets:
    """The training sets {adapter: examples} with "old" and "reference" where the objective uses them.

    `sampled` is the society that gave the answers, `start` the one that the finetuning starts from. The score program
    computes both at temperature 1. Examples that do not fit into a row are never trained on, and get none.

    Raises UserError for an example without a counterpart if the objective compares two dialogues.
    """
    if getattr(objective, "uses_counterparts", False):
        single = next(((name, one) for name, own in sets.items() for one in own if "counterpart" not in one), None)
        if single is not None:
            raise UserError(
                f"The adapter {single[0]} has an example without a counterpart (question {single[1]['id']}), but its objective, "
                f"{type(objective).__name__}, compares the two: select pairs, or use another objective."
            )
    found: dict[str, list[Any]] = {name: [dict(example) for example in own] for name, own in sets.items()}
    parts = {name: _parts(chat, own, row_tokens) for name, own in sets.items()}
    reference = start if objective.reference == "start" else Society()
    wanted = {"old": sampled} if objective.uses_old else {}
    wanted |= {"reference": reference} if objective.uses_reference else {}
    scored: list[tuple[Society, dict[str, list[list[float]]]]] = []
    for field, society in wanted.items():
        values = next((known for other, known in scored if other is society), None)
        if values is None:
            values = _score(parts, society, score)
            scored.append((society, values))
        for name, own in found.items():
            for part, new in zip(parts[name], values[name], strict=True):
                own[part.example].setdefault(field, []).extend(new)
    return found


def _parts(chat: Chat, examples: Sequence[Example], row_tokens: int) -> list[Part]:
    units, _ = encode_together(chat, examples, row_tokens)
    return [part for unit in units for part in unit]


def _score(parts: Mapping[str, Sequence[Part]], society: Society, score: Scorer) -> dict[str, list[list[float]]]:
    """{adapter: for each part the log-probabilities of its targets in nats, rounded to six decimals}."""
    order = [(name, part) for name, own in parts.items() for part in own]
    texts = [Text(name if society.names else None, part.encoded[0].tolist()) for name, part in order]
    found: dict[str, list[list[float]]] = {name: [] for name in parts}
    for (name, part), scored in zip(order, score(texts, society), strict=True):
        own = scored.log_probs[1:][part.encoded[1][1:]]
        found[name].append([round(value, 6) for value in own.tolist()])
    return found
