"""What each adapter of a society is trained on: which examples of the debates, with which settings."""

import dataclasses
from collections.abc import Sequence

from mft_jax.config import RoleConfig
from mft_jax.debate.transcript import Transcript
from mft_jax.finetuning.examples import Equivalent, Example, Selector
from mft_jax.seeds import example_choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """How one adapter is finetuned in each iteration."""

    adapter: str
    """Its name."""
    select: Selector
    """Selects its training examples."""
    settings: RoleConfig
    """Learning rate and epochs."""
    field: str
    """The name of the configuration field with these settings, for messages."""
    stream: int
    """The number of the random stream of `select` within an iteration."""


def select_examples(
    lessons: Sequence[Lesson],
    transcripts: Sequence[Transcript],
    equivalent: Equivalent,
    *,
    seed: int,
    iteration: int,
) -> dict[str, list[Example]]:
    """Selects the training set of every adapter. An adapter with an empty training set is not changed by finetuning.

    The random draws of a lesson depend only on (seed, iteration, stream of the lesson) and on its own examples.
    """
    return {
        lesson.adapter: lesson.select(transcripts, equivalent, example_choice(seed, iteration, lesson.stream))
        for lesson in lessons
    }
