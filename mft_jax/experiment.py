"""Algorithm 1: in each iteration the society debates, takes its vote as truth, and finetunes every agent on its part.

Every stage reads what it has already done from the run directory and goes on from there, so that a run started again
with the same command repeats nothing and ends with the same bytes.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence

from mft_jax.config import ExperimentConfig, TaskConfig, validate
from mft_jax.debate import Debate, Society, Transcript
from mft_jax.errors import UserError
from mft_jax.files import atomic_write
from mft_jax.finetuning import datasets
from mft_jax.finetuning.packing import Plan, make_plan
from mft_jax.finetuning.step import Metrics, TrainState, hyper_of, init_state
from mft_jax.finetuning.trainer import train
from mft_jax.methods.untuned import untuned_shape
from mft_jax.metrics.accuracy import accuracy
from mft_jax.metrics.costs import finetuning_cost, sampling_cost
from mft_jax.metrics.ledger import Cost
from mft_jax.metrics.logger import MetricsLogger
from mft_jax.parallel.compilation import compile_seconds
from mft_jax.report.progress import Reporter, SilentReporter
from mft_jax.runs.adapters import chosen_iteration, with_imported
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.journal import Journal
from mft_jax.runs.results import Result, collect_results, read_results, write_results
from mft_jax.setup import Setup, prepare
from mft_jax.tasks import Question

METHOD = "multiagent_ft"


def run(config: ExperimentConfig, reporter: Reporter | None = None) -> list[Result]:
    """The whole experiment, or what is left of it; returns its results, as results.json holds them.

    Raises UserError for whatever a user can mend; what was done until then is kept.
    """
    validate(config)
    if not config.task.train_questions:
        raise UserError("task.train_questions is 0, expected at least 1 to debate and finetune on.")
    reporter = reporter or SilentReporter()
    directory = RunDirectory(config.run_dir)
    if directory.initial.is_dir():
        config = with_imported(config, directory)
        lora = config.lora
        reporter.say(
            f"The agents start from the adapters in {directory.initial}: rank {lora.rank}, alpha {lora.alpha:g}, "
            f"on {', '.join(lora.targets)}."
        )
    if directory.exists and directory.open_run(config) == "finished":
        reporter.say(f"The run in {directory.path} is finished; nothing to do. Another one needs another --run-dir.")
        return read_results(directory.results_file)
    try:
        # Before anything is written: a mistake in the configuration leaves no directory behind.
        experiment = Experiment(prepare(config), directory, reporter)
        if not directory.exists:
            experiment.initial_adapters()  # imported ones may be of another society, or another base
    except BaseException:
        directory.unlock()
        raise
    if not directory.exists:
        directory.open_run(config)
    elif directory.manifest()["status"] == "running":
        reporter.say(f"Going on with the run in {directory.path}.")
    try:
        directory.keep_questions(experiment.setup.task)
        experiment.run()
    except BaseException as error:
        directory.fail(f"{type(error).__name__}: {error}")
        raise
    directory.finish()
    return read_results(directory.results_file)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run at work: what it computes with, where it keeps things, whom it tells."""

    setup: Setup
    directory: RunDirectory
    reporter: Reporter

    @property
    def config(self) -> ExperimentConfig:
        return self.setup.config

    def run(self) -> None:
        """Algorithm 1 of the paper, with an evaluation after each iteration."""
        for method in self.config.baselines:
            self.evaluate_baseline(method)
        adapters = self.initial_adapters()
        for iteration in range(1, self.config.iterations + 1):
            transcripts = self.debate(iteration, adapters)
            sets = self.training_sets(iteration, transcripts)
            if self.config.finetuning.restart_from_base:
                adapters = self.setup.fresh_adapters()
            adapters = self.finetune(iteration, adapters, sets)
            self.evaluate(iteration, adapters)

    def initial_adapters(self):
        """Those that were imported into the run directory; otherwise fresh ones, which still are the base model."""
        fresh = self.setup.fresh_adapters()
        if not self.directory.initial.is_dir():
            return fresh
        with Checkpoints(self.directory.initial, read_only=True) as checkpoints:
            return checkpoints.restore(0, {"adapters": fresh})["adapters"]

    def evaluate_baseline(self, method: str) -> None:
        """The untuned model on the held-out questions: alone, by vote, or in a debate."""
        shape = untuned_shape(method, self.config.debate)
        debate = self.setup.debate(Society(), name=f"{method}/eval/0", agents=shape.agents, rounds=shape.rounds)
        self._hold(debate, self.setup.task.eval, self.directory.baseline_file(method), f"{method} (untuned)")
        self._publish()

    def debate(self, iteration: int, adapters) -> list[Transcript]:
        """The society debates the training questions: the data of this iteration."""
        debate = self.setup.debate(self.setup.society(adapters), name=f"{METHOD}/train/{iteration}")
        name = f"iteration {iteration}: debate"
        return self._hold(debate, self.setup.task.train, self.directory.debate_file(iteration), name)

    def training_sets(self, iteration: int, transcripts: Sequence[Transcript]) -> datasets.TrainingSets:
        """Each agent's own part of the debate, where it agrees with the vote."""
        config = self.config
        sets = datasets.training_sets(
            transcripts, self.setup.task.equivalent, config.finetuning, seed=config.seed, iteration=iteration
        )
        for role, lists in (("generator", sets.generators), ("critic", sets.critics)):
            for agent, examples in enumerate(lists):
                lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
                atomic_write(self.directory.training_set_file(iteration, role, agent), lines)
        return sets

    def finetune(self, iteration: int, adapters, sets: datasets.TrainingSets):
        """All 2N agents on their own data, in one compiled step; returns the new adapters."""
        config, setup = self.config, self.setup
        with Checkpoints(self.directory.checkpoint(iteration)) as checkpoints:
            done = checkpoints.finished()
            if done is not None:
                return checkpoints.restore(done.step, {"adapters": adapters})["adapters"]
            names, roles = datasets.society(config.debate.agents, config.finetuning)
            plan = make_plan(
                setup.chat, sets.agents, names, roles, config.finetuning, seed=config.seed, iteration=iteration
            )
            self._remark_on(plan)
            trainer = _Finetuning(self, iteration, plan, checkpoints)
            return trainer.run(adapters)

    def evaluate(self, iteration: int, adapters) -> list[Transcript]:
        """The finetuned society on the held-out questions."""
        debate = self.setup.debate(self.setup.society(adapters), name=f"{METHOD}/eval/{iteration}")
        name = f"iteration {iteration}: evaluation"
        transcripts = self._hold(debate, self.setup.task.eval, self.directory.evaluation_file(iteration), name)
        self._publish()
        return transcripts

    def _hold(self, debate: Debate, questions: Sequence[Question], file: pathlib.Path, name: str) -> list[Transcript]:
        """A debate chunk by chunk, each journalled when it is done; chunks of an earlier start are read, not redone."""
        journal, size = Journal(file), self.config.sampling.chunk_questions
        chunks = [questions[start : start + size] for start in range(0, len(questions), size)]
        rows = debate.rows(len(questions))
        correct = [line["correct"] for line in journal.lines()]
        if journal.chunks < len(chunks):
            with self.reporter.stage(name, rows, "samples", done=debate.rows(len(correct))) as stage:
                for chunk in chunks[journal.chunks :]:
                    started = time.perf_counter()
                    transcripts, usages = debate.run(chunk, stage.advance)
                    cost = sampling_cost(usages, self.setup.model, self.config.lora)
                    cost = dataclasses.replace(cost, wall_seconds=time.perf_counter() - started)
                    journal.commit([transcript.to_json() for transcript in transcripts], cost)
                    correct += [transcript.correct for transcript in transcripts]
                    score = accuracy(correct)
                    stage.note(f"{score.n} questions, accuracy {100 * score.value:.1f} ± {100 * score.stderr:.1f} %")
        return [Transcript.from_dict(line) for line in journal.lines()]

    def _remark_on(self, plan: Plan) -> None:
        for agent in plan.agents:
            if agent.left_out:
                self.reporter.say(
                    f"{agent.name}: {agent.left_out} dialogues are longer than finetuning.row_tokens = {plan.row_tokens} "
                    "and were left out."
                )
            if not agent.steps:
                self.reporter.say(
                    f"{agent.name}: no training examples in iteration {plan.iteration}; it keeps its weights."
                )

    def _publish(self) -> None:
        """Rewrites results.json from the journals; results on other tasks, from `mft eval`, stay."""
        setup, path = self.setup, self.directory.results_file
        results = collect_results(
            self.directory,
            task=setup.task.name,
            questions=len(setup.task.eval),
            baselines=self.config.baselines,
            method=METHOD,
            iterations=self.config.iterations,
            equivalent=setup.task.equivalent,
        )
        others = [result for result in read_results(path) if result.task != setup.task.name] if path.exists() else []
        write_results(path, results + others)


@dataclasses.dataclass(frozen=True)
class _Finetuning:
    """The finetuning stage of one iteration, from its last checkpoint on."""

    experiment: Experiment
    iteration: int
    plan: Plan
    checkpoints: Checkpoints

    def run(self, adapters):
        experiment, setup, plan = self.experiment, self.experiment.setup, self.plan
        finetuning = setup.config.finetuning
        state, start, cost = setup.place_state(init_state(adapters)), 0, Cost()
        latest = self.checkpoints.latest()
        if latest is not None:
            state = TrainState(**self.checkpoints.restore(latest.step, state._asdict()))
            start, cost = latest.step, latest.cost
        logger = MetricsLogger(experiment.directory.metrics_file)
        logger.rewind(self.iteration, "finetune", start + 1)
        clock = _Clock(cost, start)
        with experiment.reporter.stage(f"iteration {self.iteration}: finetuning", plan.total, "steps", start) as stage:

            def on_step(done: int, metrics: Metrics) -> None:
                scalars = _scalars(plan, metrics)
                logger.log(self.iteration, "finetune", done, **scalars)
                stage.advance(1, plan.tokens(done - 1))
                stage.note(f"loss {scalars['loss']:.3f}")

            def on_save(done: int, state: TrainState) -> None:
                self._save(done, state, self._cost(clock, done), finished=False)

            state = train(
                setup.train_step, setup.base, state, plan, hyper_of(plan, finetuning), start=start,
                save_every=finetuning.save_every, on_step=on_step, on_save=on_save, mesh=setup.mesh,
            )  # fmt: skip
            self._save(plan.total, state, self._cost(clock, plan.total), finished=True)
        return state.adapters

    def _cost(self, clock: "_Clock", done: int) -> Cost:
        setup = self.experiment.setup
        work = finetuning_cost(self.plan, clock.start, done, setup.model, setup.config.lora)
        wall, device = clock.seconds()
        seconds = Cost(wall_seconds=wall, device_seconds=device * setup.mesh.size)
        return clock.before + work + seconds

    def _save(self, done: int, state: TrainState, cost: Cost, *, finished: bool) -> None:
        lora = self.experiment.config.lora
        self.checkpoints.save(done, state._asdict(), finished=finished, lora=lora, cost=cost)


class _Clock:
    """Seconds since a stage was started or resumed, on top of what it had cost before."""

    def __init__(self, before: Cost, start: int):
        self.before, self.start = before, start
        self._started, self._compiled = time.perf_counter(), compile_seconds()

    def seconds(self) -> tuple[float, float]:
        """(on the clock, in compiled programs: without compilation)."""
        wall = time.perf_counter() - self._started
        return wall, max(0.0, wall - (compile_seconds() - self._compiled))


def _scalars(plan: Plan, metrics: Metrics) -> dict[str, float]:
    """A step's metrics by agent, and their mean over the agents that learned."""
    scalars = {"loss": float(metrics.loss[metrics.active].mean())}
    for index, agent in enumerate(plan.agents):
        if metrics.active[index]:
            for name in ("loss", "grad_norm", "learning_rate", "targets"):
                scalars[f"{agent.name}/{name}"] = float(getattr(metrics, name)[index])
    return scalars


def evaluate(
    run_dir: str | pathlib.Path,
    task: TaskConfig,
    *,
    iteration: int | None = None,
    label: str | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """The society of a run on another task (zero-shot), or on other questions of its own.

    `iteration` is the last finished one by default. Transcripts and results go to RUN_DIR/evaluations/LABEL, and the
    result into the run's results.json as task LABEL. Raises UserError when there is no such run or iteration.
    """
    directory = RunDirectory(run_dir)
    trained = directory.config()
    iteration = chosen_iteration(directory, trained.iterations, iteration)
    label = label or (task.name if task.name != trained.task.name else f"{task.name}_{task.eval_questions}")
    if "/" in label or label in (".", "..", trained.task.name):
        raise UserError(
            f"The label {label!r} cannot name this evaluation: give --label a short word that is no other task's."
        )
    place = directory.path / "evaluations" / label
    config = dataclasses.replace(trained, task=task, run_dir=str(place))
    setup = prepare(config)
    nested = RunDirectory(place)
    if nested.open_run(config) == "finished":  # for another iteration, perhaps: its own is read, not sampled again
        nested.lock()
    try:
        nested.keep_questions(setup.task)
        experiment = Experiment(setup, nested, reporter or SilentReporter())
        with Checkpoints(directory.checkpoint(iteration), read_only=True) as checkpoints:
            done = checkpoints.finished()
            assert done is not None, "the iteration was found finished above"
            adapters = checkpoints.restore(done.step, {"adapters": setup.fresh_adapters()})["adapters"]
        experiment.evaluate(iteration, adapters)
        found = next(r for r in read_results(nested.results_file) if r.iteration == iteration)
        nested.finish()
    finally:
        nested.unlock()
    result = dataclasses.replace(found, task=label)
    known = read_results(directory.results_file)
    kept = [r for r in known if (r.method, r.iteration, r.task) != (result.method, iteration, label)]
    write_results(directory.results_file, [*kept, result])
    return result
