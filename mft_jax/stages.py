"""The debate stage, which resumes after the saved chunks, and the finetuning stage, which resumes from a checkpoint."""

import dataclasses
import textwrap
import time
from collections.abc import Sequence

from mft_jax.config import LoraConfig
from mft_jax.debate import Debate, Transcript, turn_counts
from mft_jax.errors import UserError
from mft_jax.finetuning import Plan, hyper_of, train
from mft_jax.metrics.accuracy import accuracy
from mft_jax.metrics.costs import finetuning_cost, sampling_cost
from mft_jax.metrics.ledger import Cost, total
from mft_jax.models.society import Society
from mft_jax.parallel.memory import peak_memory
from mft_jax.parallel.mesh import society_shardings
from mft_jax.parallel.placement import to_devices
from mft_jax.programs.train import Metrics, TrainState, init_state
from mft_jax.report.progress import Reporter, Stage
from mft_jax.runs.checkpoint_info import CheckpointInfo
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.metrics_log import MetricsLogger
from mft_jax.runs.shared_stages import begin_stage
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.store import Store
from mft_jax.sampling import Usage
from mft_jax.session import Session
from mft_jax.setup import Setup
from mft_jax.stage_inputs import stage_inputs
from mft_jax.tasks import Question, grader

EXAMPLE_WIDTH = 100  # characters of each part of an example in the progress display


def run_debate(
    debate: Debate,
    questions: Sequence[Question],
    file: StageFile,
    setup: Setup,
    reporter: Reporter,
    title: str,
    siblings: Sequence[Store] = (),
) -> None:
    """Runs the debates on all questions. Their transcripts are then in `file`; no more than a chunk of them is held here.

    Chunks committed by an earlier start are read from disk and not computed again. If this run or one of `siblings`
    has a finished stage with equal inputs, its transcripts are copied.
    """
    size = setup.config.sampling.chunk_questions
    if file.missing(len(questions), size):
        source = begin_stage(file, stage_inputs(debate, questions, setup), len(questions), siblings)
        if source is not None:
            reporter.say(f"{title}: copied from {source}, which has equal inputs.")
    missing = file.missing(len(questions), size)
    if missing:
        correct = [line["correct"] for line in file.each_line()]
        with reporter.stage(title, debate.samples(len(questions)), "samples", done=debate.samples(file.done)) as stage:
            for part in missing:
                started, late = time.perf_counter(), grader.timeouts()
                transcripts, cost = _run_chunk(debate, questions[part.start : part.stop], setup, stage)
                seconds, memory = time.perf_counter() - started, peak_memory(setup.session.mesh)
                cost = dataclasses.replace(cost, wall_seconds=seconds, peak_memory_bytes=memory)
                counts = turn_counts(transcripts) | {"grading_timeouts": grader.timeouts() - late}
                file.commit(part.start, [transcript.to_json() for transcript in transcripts], cost, counts)
                correct += [transcript.correct for transcript in transcripts]
                stage.note(_score_so_far(correct))
                stage.show(describe_example(transcripts[0]))
    file.seal(len(questions))
    remark = describe_counts(file.counts)
    if missing and remark:
        reporter.say(f"{title}: {remark}")


def _run_chunk(
    debate: Debate, questions: Sequence[Question], setup: Setup, stage: Stage
) -> tuple[list[Transcript], Cost]:
    """The debates on these questions, and their cost as `sampling_cost` gives it. `stage` shows the progress."""
    costs: list[Cost] = []

    def on_usages(usages: Sequence[Usage]) -> None:
        costs.append(sampling_cost(usages, setup.session.model, setup.config.lora))
        stage.add_flops(costs[-1].flops)

    transcripts, _ = debate.run(questions, stage.advance, on_usages=on_usages)
    return transcripts, total(costs)


def describe_counts(counts: dict[str, int]) -> str:
    """Sentences on texts that were cut, left out or not graded, which lower the accuracy; "" if there are none."""
    sentences = {
        "cut": "{} answers were cut by a limit (sampling.max_new_tokens or the model's context).",
        "unanswered": "{} turns had no room in the model's context and were left unanswered.",
        "grading_timeouts": "{} comparisons of answers ran out of time and count as different.",
    }
    return " ".join(text.format(counts[name]) for name, text in sentences.items() if counts.get(name))


def describe_example(transcript: Transcript) -> str:
    """A debate in one line: the question, the last answer of each agent, and the vote."""
    answers = ", ".join(agent.answers[-1] or "none" for agent in transcript.agents)
    parts = (transcript.question, f"answers: {answers}", f"vote: {transcript.vote or 'none'}")
    return "e.g. " + " | ".join(textwrap.shorten(part, EXAMPLE_WIDTH) for part in parts)


def _score_so_far(correct: Sequence[bool | None]) -> str:
    known = [value for value in correct if value is not None]
    if not known:
        return f"{len(correct)} questions"
    score = accuracy(known)
    return f"{len(correct)} questions, accuracy {100 * score.value:.1f} ± {100 * score.stderr:.1f} %"


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """The finetuning stage of one iteration."""

    setup: Setup
    plan: Plan
    checkpoints: Checkpoints
    logger: MetricsLogger
    reporter: Reporter
    spent: Cost = Cost()  # noqa: RUF009  (frozen)
    """What the training sets have cost: it is counted as a part of the finetuning."""

    def run(self, society: Society) -> Society:
        """Trains from the newest undamaged checkpoint to the last step, and returns the finetuned society."""
        session, plan, lora = self.setup.session, self.plan, self.setup.config.lora
        state, start, cost = place_state(session, init_state(society.stacked.weights)), 0, self.spent
        found = self.checkpoints.newest_whole(state._asdict(), self.reporter.say)
        if found is not None:
            info, parts = found
            check_plan(info, plan, self.checkpoints)
            state, start, cost = TrainState(**parts), info.step, info.cost
        state = self._train(state, start, cost, lora)
        return session.society(society.names, state.adapters, lora)

    def _train(self, state: TrainState, start: int, cost: Cost, lora: LoraConfig) -> TrainState:
        plan, setup, tuning = self.plan, self.setup, self.setup.config.finetuning
        program = setup.session.programs.train(setup.method.objective, state, tuning.agents_at_once, tuning.recomputed)
        self.logger.rewind(plan.iteration, "finetune", start + 1)
        began = time.perf_counter()
        title = f"iteration {plan.iteration}: finetuning"
        with self.reporter.stage(title, plan.total, "steps", start) as stage:

            def on_step(done: int, metrics: Metrics) -> None:
                scalars = scalars_of(plan, metrics)
                self.logger.log(plan.iteration, "finetune", done, **scalars)
                stage.advance(1, plan.tokens(done - 1))
                stage.add_flops(finetuning_cost(plan, done - 1, done, setup.session.model, lora).flops)
                stage.note(f"loss {scalars['loss']:.3f}")

            def on_save(done: int, state: TrainState, busy: float) -> None:
                work = finetuning_cost(plan, start, done, setup.session.model, lora)
                measured = Cost(
                    wall_seconds=time.perf_counter() - began,
                    device_seconds=busy * setup.session.mesh.size,
                    peak_memory_bytes=peak_memory(setup.session.mesh),
                )
                self._save(done, state, cost + work + measured)

            try:
                state = train(
                    program, setup.session.base, state, plan, hyper_of(plan, tuning, lora.scale), start=start,
                    save_every=tuning.save_every, on_step=on_step, on_save=on_save, mesh=setup.session.mesh,
                )  # fmt: skip
            finally:
                self.logger.flush()
        if not plan.total:
            self._save(0, state, cost)
        return state

    def _save(self, done: int, state: TrainState, cost: Cost) -> None:
        lora, names, plan = self.setup.config.lora, self.setup.method.adapters, self.plan
        self.logger.flush()  # before the checkpoint, so that a kill between the two loses no metrics of finished steps
        self.checkpoints.save(
            done, state._asdict(), finished=done == plan.total, lora=lora, cost=cost, names=names, plan=plan.digest,
            total=plan.total,
        )  # fmt: skip


def check_plan(info: CheckpointInfo, plan: Plan, checkpoints: Checkpoints) -> None:
    """Raises UserError if the checkpoint was trained on other data than the plan has now."""
    if info.plan != plan.digest:
        raise UserError(
            f"The checkpoint {checkpoints.directory / str(info.step)} was trained on other data than iteration "
            f"{plan.iteration} has now: resume with the version of mft_jax that started the run, or delete "
            f"{checkpoints.directory} to finetune this iteration from its start."
        )


def place_state(session: Session, state: TrainState) -> TrainState:
    """A copy of the adapters and the optimizer state, sharded over the mesh.

    It must be a copy: the training step donates its state, and the society before finetuning may be needed again.
    """
    return to_devices(state, society_shardings(session.mesh, state), copy=True)


def remarks_on(plan: Plan) -> list[str]:
    """Remarks for the user before finetuning starts: examples that were left out, and adapters without examples."""
    remarks = []
    for own in plan.adapters:
        if own.left_out:
            remarks.append(
                f"{own.name}: {own.left_out} examples were left out: they are longer than finetuning.row_tokens = "
                f"{plan.row_tokens}, or contain nothing to learn."
            )
        if not own.steps:
            remarks.append(f"{own.name}: no training examples in iteration {plan.iteration}; it keeps its weights.")
    return remarks


def scalars_of(plan: Plan, metrics: Metrics) -> dict[str, float]:
    """The metrics of one step for each adapter, and the mean loss over the adapters that were trained in it."""
    scalars = {"loss": float(metrics.loss[metrics.active].mean())}
    for index, own in enumerate(plan.adapters):
        if metrics.active[index]:
            for name in ("loss", "grad_norm", "learning_rate", "targets"):
                scalars[f"{own.name}/{name}"] = float(getattr(metrics, name)[index])
    return scalars
