"""What a task is: questions to train on, held-out ones to evaluate on, and how their answers are read and compared."""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence

from mft_jax.errors import UserError
from mft_jax.prompts import Prompts
from mft_jax.tasks import answers


@dataclasses.dataclass(frozen=True)
class Question:
    id: str
    """Unique within the task and the same in every run: the random keys of a row and of a vote are made from it."""
    text: str
    gold: str | None
    """The right answer in canonical form, None where it is not known: only for measuring accuracy, never for training
    (method, section 1)."""


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    parse: Callable[[str], str | None]
    """The answer in a complete text, in canonical form; None where there is none, which counts as wrong and casts no
    vote."""
    equivalent: Callable[[str, str], bool]
    """Whether two answers are mathematically the same."""
    prompts: Prompts
    """What its agents and the summarizer are told."""

    def answer(self, text: str, complete: bool) -> str | None:
        r"""The answer in a sampled text, in canonical form; None where there is none.

        A text that was cut by a token limit (`complete` False) has an answer only if it holds a whole, non-empty
        \boxed{...}: its last number, say, may be an intermediate result, or half of a number.
        """
        return self.parse(text) if complete or answers.boxed(text) is not None else None


def normalise(text: str) -> str:
    """A question's text without case, spacing and Unicode composition: texts that are equal then are one question."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def check_enough(asked: int, available: int, field: str, source: str) -> None:
    """Raises UserError unless `source` has as many questions as the configuration's `field` asks for."""
    if available == 0:
        raise UserError(f"{source} has no questions: give at least one.")
    if asked > available:
        raise UserError(f"{field} is {asked}, but {source} has {available} questions: set it to {available} or less.")


def check_splits(train: Sequence[Question], evaluation: Sequence[Question]) -> None:
    """Raises UserError for an empty evaluation set, and for a question in both sets, whose answer could be memorized."""
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
