"""Algorithm 1 step by step, for notebooks: debate, select, finetune, evaluate. Nothing is written to disk.

With the same configuration, the steps give the same transcripts, training sets and adapters as a run.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mft_jax.debate import Protocol, Transcript
from mft_jax.experiment import restore_society
from mft_jax.finetuning import Example, hyper_of, make_plan, train
from mft_jax.models.society import Society
from mft_jax.programs.train import Metrics, init_state
from mft_jax.runs import layout
from mft_jax.runs.adapters import chosen_iteration
from mft_jax.runs.directory import RunDirectory
from mft_jax.session import Session
from mft_jax.setup import Setup, prepare
from mft_jax.stages import place_state
from mft_jax.tasks import Question
from mft_jax.training_data import TrainingData


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """The result of a finetuning."""

    society: Society
    loss: Float[np.ndarray, "steps A"]
    """The loss of each adapter at each optimizer step; NaN where it had no examples left."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of one iteration of the method in a setup. `iteration`, from 1, selects the random streams."""

    setup: Setup
    iteration: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.iteration, int) or self.iteration < 1:
            raise ValueError(f"iteration is {self.iteration!r}, expected an integer of at least 1")

    def debate(self, society: Society, questions: Sequence[Question] | None = None) -> list[Transcript]:
        """The training debates on these questions; by default on all training questions."""
        asked = self.setup.task.train if questions is None else questions
        return self._run(self.setup.method.protocol, society, f"train/{self.iteration}", asked)

    def begin(self, society: Society, initial: Society) -> Society:
        """The society that the finetuning starts from: `society`, with the adapters of `initial` that the method restarts."""
        return society.with_adapters_of(initial, self.setup.method.restarted)

    def select(
        self, transcripts: Sequence[Transcript], society: Society, begin: Society | None = None
    ) -> dict[str, list[Example]]:
        """The training set of each adapter, {name: examples}, from the debates of `society`.

        `begin` is the society that the finetuning starts from, which some objectives compare with; default: `society`.
        """
        return TrainingData(self.setup).make(transcripts, self.iteration, sampled=society, start=begin or society)

    def finetune(self, society: Society, examples: Mapping[str, list[Example]]) -> Finetuned:
        """Finetunes each adapter of `society`, which is not changed, on its own examples.

        Raises ValueError if an adapter of the method has no entry in `examples`, which may be empty, and NonFiniteLoss, a
        UserError, if the loss, a gradient or a weight is not finite.
        """
        missing = [name for name in self.setup.method.adapters if name not in examples]
        if missing:
            raise ValueError(
                f"examples has no entry for {', '.join(missing)}; give an empty list for what is not to be trained"
            )
        setup, losses = self.setup, []
        session, config, objective = setup.session, setup.config, setup.method.objective
        tuning = config.finetuning
        plan = make_plan(
            session.chat, setup.method.lessons, examples, tuning, seed=config.seed, iteration=self.iteration,
            signals=objective.uses_signals,
        )  # fmt: skip
        state = place_state(session, init_state(society.stacked.weights))
        program = session.programs.train(objective, state, tuning.agents_at_once, tuning.recomputed)

        def on_step(done: int, metrics: Metrics) -> None:
            losses.append(np.where(metrics.active, metrics.loss, np.nan))

        state = train(
            program, session.base, state, plan, hyper_of(plan, tuning, config.lora.scale), mesh=session.mesh,
            on_step=on_step,
        )  # fmt: skip
        tuned = session.society(society.names, state.adapters, config.lora)
        return Finetuned(tuned, np.array(losses).reshape(-1, len(plan.adapters)))

    def evaluate(self, society: Society, questions: Sequence[Question] | None = None) -> list[Transcript]:
        """The debates on these questions by the rules of the evaluation; by default on all held-out questions."""
        asked = self.setup.task.eval if questions is None else questions
        return self._run(self.setup.method.evaluation, society, "eval", asked)

    def _run(self, rules: Protocol, society: Society, name: str, questions: Sequence[Question]) -> list[Transcript]:
        debate = self.setup.debate(society, name, rules.with_base_for(society.without_effect))
        return debate.run(questions)[0]


def load_society(
    run_dir: str | pathlib.Path, iteration: int | None = None, session: Session | None = None
) -> tuple[Setup, Society]:
    """(setup, society) of a run after `iteration`, by default the last finished one.

    `session` is used if given, otherwise one is opened. Raises UserError if there is no such run or iteration.
    """
    directory = RunDirectory(run_dir)
    config = directory.config()
    chosen = chosen_iteration(directory, config.iterations, iteration)
    setup = prepare(config, session)
    return setup, restore_society(directory.store, layout.checkpoint(chosen), setup.fresh_society())
