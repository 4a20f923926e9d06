"""What a task is: questions to train on, held-out ones to evaluate on, and how their answers are read and compared."""

import dataclasses
import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

from mft_jax.errors import UserError
from mft_jax.prompts import Prompts

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Question:
    id: str
    """Unique within the task and the same in every run: the random keys of a row and of a vote are made from it."""
    text: str
    gold: str | None
    """The right answer in canonical form: only for measuring accuracy, never for training (method, section 1)."""


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    parse: Callable[[str], str | None]
    """The answer in a text, in canonical form; None where there is none, which counts as wrong and casts no vote."""
    equivalent: Callable[[str, str], bool]
    """Whether two answers are mathematically the same."""
    prompts: Prompts
    """What its agents and the summarizer are told."""


def seeded_order(items: Sequence[T], seed: int, name: str) -> tuple[T, ...]:
    """All items in an order that depends only on their number, `seed` and `name`.

    A subset is a prefix of it, so a smaller run's questions are among a larger run's.
    """
    # Only random() itself is promised to give the same stream in every version of Python; shuffle and sample are not.
    draws = random.Random(f"{seed}/{name}")
    keys = [draws.random() for _ in items]
    return tuple(items[index] for index in sorted(range(len(items)), key=lambda index: keys[index]))


def normalised(text: str) -> str:
    """A question's text without case, spacing and Unicode composition: texts that are equal then are one question."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def check_enough(asked: int, available: int, field: str, source: str) -> None:
    """Raises UserError unless `source` has as many questions as the configuration's `field` asks for."""
    if available == 0:
        raise UserError(f"{source} has no questions: give at least one.")
    if asked > available:
        raise UserError(f"{field} is {asked}, but {source} has {available} questions: set it to {available} or less.")


def check_splits(train: Sequence[Question], evaluation: Sequence[Question]) -> None:
    """Raises UserError for an empty split, and where a question is in both: its accuracy would measure memory."""
    if not evaluation:
        raise UserError("task.eval_questions gives no questions: set it to at least 1.")
    seen = {normalised(question.text): question for question in train}
    for question in evaluation:
        twin = seen.get(normalised(question.text))
        if twin is not None:
            raise UserError(
                f"The question {_shortened(question.text)} is both a training question ({twin.id}) and an evaluation "
                f"question ({question.id}): remove it from one of the two sets."
            )


def _shortened(text: str, width: int = 80) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
