"""What a method is: who speaks when, what each is shown, and who learns what."""

import dataclasses

from mft_jax.debate.protocol import Protocol
from mft_jax.finetuning.lesson import Lesson
from mft_jax.finetuning.losses import likelihood
from mft_jax.programs.train import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method as a value over the shared stages: it has no sampler, trainer or loop of its own."""

    name: str
    protocol: Protocol
    """Of the debates that make the training data, and of those that are evaluated."""
    lessons: tuple[Lesson, ...] = ()
    """One for each adapter, in the order of the society; none: nothing is finetuned."""
    objective: Objective = likelihood
    restart: bool = False
    """Each iteration finetunes the adapters that the run began with, instead of those of the iteration before."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the society, in order."""
        return tuple(lesson.adapter for lesson in self.lessons)
