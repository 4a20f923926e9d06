"""Encodes training examples: the token ids of their dialogues, and what an objective needs to know of each."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mft_jax.finetuning.examples import Example
from mft_jax.models.chat import Chat, Encoded
from mft_jax.prompts import Message


@dataclasses.dataclass(frozen=True)
class Part:
    """A text to train on: a dialogue, or its beginning up to one turn if the template renders a turn differently later."""

    encoded: Encoded
    example: int = 0  # index of its example in the training set
    is_counterpart: bool = False
    weight: float = 1.0
    value: float = 0.0
    reference: Float[np.ndarray, "M"] | None = None  # log-probabilities of its targets, in nats; None: not needed
    old: Float[np.ndarray, "M"] | None = None

    @property
    def targets(self) -> int:
        """The number of its targets."""
        return int(self.encoded[1][1:].sum())


def encode_apart(chat: Chat, examples: Sequence[Example], row_tokens: int) -> tuple[list[list[Part]], int]:
    """The parts of the examples, each on its own, and the number of parts left out.

    Parts longer than a row are left out, because a truncated one would lose its last answer; so are parts without
    targets.
    """
    encoded = chat.all_examples([(own["messages"], own.get("learned")) for own in examples])
    every = [
        Part(pair, index, weight=own.get("weight", 1.0))
        for index, (own, pairs) in enumerate(zip(examples, encoded, strict=True))
        for pair in pairs
    ]
    kept = [[part] for part in every if len(part.encoded[0]) <= row_tokens and part.targets]
    return kept, len(every) - len(kept)


def encode_together(chat: Chat, examples: Sequence[Example], row_tokens: int) -> tuple[list[list[Part]], int]:
    """The parts of each example and of its counterpart, which must share a row, and the number of examples left out.

    An example whose parts do not fit into a row together is left out, and so is one without targets.
    """
    dialogues = [(messages, own.get("learned")) for own in examples for messages in dialogues_of(own)]
    kept, encoded = [], iter(chat.all_examples(dialogues))
    for index, own in enumerate(examples):
        parts = []
        for is_counterpart in range(len(dialogues_of(own))):
            for pair in next(encoded):
                parts.append(Part(pair, index, bool(is_counterpart), own.get("weight", 1.0), own.get("value", 0.0)))
        if sum(len(part.encoded[0]) for part in parts) <= row_tokens and all(part.targets for part in parts):
            kept.append(_with_log_probs(parts, own))
    return kept, len(examples) - len(kept)


def dialogues_of(example: Example) -> list[list[Message]]:
    """The dialogue of an example and, if it has one, its counterpart."""
    return [example["messages"], *([example["counterpart"]] if "counterpart" in example else [])]


def _with_log_probs(parts: Sequence[Part], example: Example) -> list[Part]:
    """The parts with their share of the log-probabilities of the example, which are in the order of its targets."""
    ends = np.cumsum([part.targets for part in parts])[:-1]
    for name in ("reference", "old"):
        if name in example:
            split = np.split(np.asarray(example[name], np.float32), ends)
            parts = [dataclasses.replace(part, **{name: own}) for part, own in zip(parts, split, strict=True)]
    return list(parts)
