"""A task: training questions, held-out evaluation questions, and how answers are parsed and compared."""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence

from mft_jax.errors import UserError
from mft_jax.prompts import Prompts
from mft_jax.tasks import answers


@dataclasses.dataclass(frozen=True)
class Question:
    id: str
    """Unique within the task and the same in every run. Random keys are derived from it."""
    text: str
    gold: str | None
    """The right answer in canonical form, or None if it is unknown. Used only to measure accuracy; only the method
    star also trains on it."""


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    parse: Callable[[str], str | None]
    """Parses the answer in a complete text, in canonical form. None if there is none: it counts as wrong, and has no
    vote."""
    equivalent: Callable[[str, str], bool]
    """Whether two answers are mathematically the same."""
    prompts: Prompts
    """The prompts of the agents and of the summaries."""

    def answer(self, text: str, complete: bool) -> str | None:
        r"""The answer in a sampled text, in canonical form; None if there is none.

        A text that was cut by a token limit (`complete` False) has an answer only if it contains a complete, non-empty
        \boxed{...}. Its last number, for example, may be an intermediate result or a part of a number.
        """
        return self.parse(text) if complete or answers.boxed(text) is not None else None


def normalise(text: str) -> str:
    """Normalizes case, spacing and Unicode composition. Texts with equal results are the same question."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def check_enough(asked: int, available: int, field: str, source: str) -> None:
    """Raises UserError if `source` has fewer questions than the configuration's `field` asks for, or none."""
    if available == 0:
        raise UserError(f"{source} has no questions: give at least one.")
    if asked > available:
        raise UserError(f"{field} is {asked}, but {source} has {available} questions: set it to {available} or less.")


def check_splits(train: Sequence[Question], evaluation: Sequence[Question]) -> None:
    """Raises UserError if the evaluation set is empty, or if a question is in both sets."""
    if not evaluation:
        raise UserError("task.eval_questions gives no questions: set it to at least 1.")
    trained = {normalise(question.text): question for question in train}
    for question in evaluation:
        twin = trained.get(normalise(question.text))
        if twin is not None:
            raise UserError(
                f"The question {_shorten(question.text)} is both a training question ({twin.id}) and an evaluation "
                f"question ({question.id}): remove it from one of the two sets."
            )


def _shorten(text: str, width: int = 80) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
