"""The definition of a method: who speaks when, what each agent is shown, and which adapter learns from what."""

import dataclasses

from mft_jax.debate.protocol import Protocol
from mft_jax.finetuning.lesson import Lesson
from mft_jax.finetuning.losses import likelihood
from mft_jax.programs.train import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method as a value. It has no code of its own: the shared debate, finetuning and evaluation stages run it."""

    name: str
    protocol: Protocol
    """The rules of the debates that make the training data, and of the evaluation debates."""
    test_protocol: Protocol | None = None
    """The rules of the evaluation debates if they are other ones."""
    lessons: tuple[Lesson, ...] = ()
    """One per adapter, in the order of the society. Empty: nothing is finetuned."""
    objective: Objective = likelihood
    """The training loss of all adapters."""
    restart: bool = False
    """True: each iteration starts from the initial adapters of the run, not from those of the previous iteration."""
    needs_gold: bool = False
    """Whether it learns from the reference answers of the training questions."""

    @property
    def evaluation(self) -> Protocol:
        """The rules of the evaluation debates."""
        return self.test_protocol or self.protocol

    @property
    def restarted(self) -> tuple[str, ...]:
        """The names of the adapters that start each iteration as in the first one."""
        return tuple(lesson.adapter for lesson in self.lessons if self.restart or lesson.restart)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, in the order of the society."""
        return tuple(lesson.adapter for lesson in self.lessons)
