"""What one adapter of a society learns from a debate."""

import dataclasses
from collections.abc import Sequence

from mft_jax.config import RoleConfig
from mft_jax.debate.transcript import Transcript
from mft_jax.finetuning.examples import Equivalent, Example, Selector
from mft_jax.seeds import example_choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """One adapter's part of a finetuning stage."""

    adapter: str
    select: Selector
    settings: RoleConfig
    """Learning rate and epochs."""
    field: str
    """The configuration field that holds `settings`, as messages name it."""
    stream: int
    """Names the random stream of `select`, within an iteration."""


def select_examples(
    lessons: Sequence[Lesson],
    transcripts: Sequence[Transcript],
    equivalent: Equivalent,
    *,
    seed: int,
    iteration: int,
) -> dict[str, list[Example]]:
    """The training set of every adapter, in the order of the transcripts; an empty one leaves its adapter as it is.

    What a lesson draws follows from (seed, iteration, its stream) and its own examples alone.
    """
    return {
        lesson.adapter: lesson.select(transcripts, equivalent, example_choice(seed, iteration, lesson.stream))
        for lesson in lessons
    }
