"""Algorithm 1 of Subramaniam et al. 2025 (arXiv 2501.05707): in each iteration the society debates and is finetuned.

The majority vote serves as the label, and each adapter is finetuned on its part of the debates. Every stage reads its
finished work from the run directory and continues from there. A run that was stopped can be started again with the same
command: it repeats no finished work and gives the same results.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Generator, Mapping, Sequence
from typing import Literal, cast

from mft_jax.budget import Budget, check_baselines
from mft_jax.config import ExperimentConfig, Speakers, TaskConfig, validate
from mft_jax.debate import Protocol, Transcript
from mft_jax.diversity_stage import DiversityStage, check_diversity
from mft_jax.errors import UserError
from mft_jax.finetuning import Example, Ruling, make_plan
from mft_jax.methods import Method, make_method, with_own_evaluation
from mft_jax.models.society import Society
from mft_jax.parallel.hosts import decide, same_config
from mft_jax.plan.fit import choose_mesh
from mft_jax.report.page import write_own_report
from mft_jax.report.progress import Reporter, SilentReporter
from mft_jax.runs import layout
from mft_jax.runs.adapters import chosen_iteration, with_imported
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.early_end import last_iteration, record_end
from mft_jax.runs.feedback import read_verdicts
from mft_jax.runs.metrics_log import MetricsLogger
from mft_jax.runs.results import Result, read_results
from mft_jax.runs.rulings import take_feedback
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.store import Store
from mft_jax.runs.training_sets import read_training_sets, training_sets_cost, write_training_sets
from mft_jax.sampling import NonFiniteLogits
from mft_jax.session import Session
from mft_jax.setup import Setup, prepare
from mft_jax.signals import deferred
from mft_jax.stages import Finetuning, remarks_on, run_debate
from mft_jax.tasks import Question, load_task
from mft_jax.tracking import Trackers, check_packages, check_place, open_trackers
from mft_jax.training_data import TrainingData


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run in progress: its setup, its directory, and the reporter that shows its progress."""

    setup: Setup
    directory: RunDirectory
    reporter: Reporter
    siblings: tuple[Store, ...] = ()  # other runs, from which stages with equal inputs are copied
    trackers: Trackers = dataclasses.field(default_factory=Trackers)

    @property
    def config(self) -> ExperimentConfig:
        return self.setup.config

    def run(self) -> None:
        """Evaluates the baselines, then runs Algorithm 1 of the paper with an evaluation after each iteration."""
        self.evaluate_baselines(0)
        method = self.setup.method
        start = society = self.initial_society()
        for iteration in range(1, self.config.iterations + 1 if method.lessons else 1):
            begin = society.with_adapters_of(start, method.restarted)
            examples = self.select(iteration, self.debate(iteration, society), sampled=society, start=begin)
            society = self.finetune(iteration, begin, examples)
            self.evaluate(method, iteration, society)
            self.evaluate_baselines(iteration)
            if self.ends_after(iteration):
                break

    def evaluate_baselines(self, iteration: int) -> None:
        """Evaluates the baselines whose budget is known after `iteration`; 0: all that need no finetuning."""
        budgets = {name: Budget.of(name, self.config) for name in self.config.baselines}
        for name, budget in sorted(budgets.items(), key=lambda item: item[1] is not None):  # budgets last
            if (0 if budget is None else budget.iteration) == iteration:
                answers = None if budget is None else budget.answers(self.directory.store)
                self.evaluate(make_method(name, self.config, answers), 0, Society())

    def initial_society(self) -> Society:
        """The adapters that were imported into the run directory, or else new adapters (zero update)."""
        fresh = self.setup.fresh_society()
        if not self.directory.has_imported:
            return fresh
        return restore_society(self.directory.store, layout.INITIAL, fresh)

    def debate(self, iteration: int, society: Society) -> StageFile:
        """Runs the debate on the training questions; its transcripts are the training data of this iteration."""
        method, file = self.setup.method, layout.debate(iteration)
        name, title = f"train/{iteration}", f"iteration {iteration}: debate"
        with self._remedy_for_broken_weights(iteration - 1):
            return self._run_debate_stage(method.protocol, society, name, self.setup.task.train, file, title)

    def select(
        self, iteration: int, debates: StageFile, *, sampled: Society, start: Society
    ) -> Mapping[str, list[Example]]:
        """The training examples of each adapter. They are made once, written to disk, and read from there later.

        `sampled` is the society that debated, `start` the one that the finetuning starts from.
        """
        store, names = self.directory.store, self.setup.method.adapters
        found = read_training_sets(store, iteration, names, self.reporter.say)
        if found is not None:
            return cast("dict[str, list[Example]]", found)
        rulings, weight = self.feedback(iteration)
        data = TrainingData(self.setup)
        examples = data.make(
            read_transcripts(debates), iteration, sampled=sampled, start=start, rulings=rulings, weight=weight
        )  # fmt: skip
        write_training_sets(store, iteration, examples, data.cost)
        return examples

    def feedback(self, iteration: int) -> tuple[Mapping[str, Ruling], float]:
        """(the rulings {question id: ruling} that follow from people's verdicts, the weight of these questions in training).

        The verdicts that an iteration uses are written to disk at the first call, and read from there later.
        Methods that learn from the reference answers, and not from votes, use no verdicts.
        """
        setup, store = self.setup, self.directory.store
        if setup.method.needs_gold:
            if store.exists(layout.FEEDBACK):
                self.reporter.say(f"{setup.method.name} learns from the reference answers: feedback.jsonl is not used.")
            return {}, 1.0
        take = lambda: take_feedback(
            store, iteration, task=setup.task.name, weight=self.config.feedback.weight,
            equivalent=setup.task.equivalent, say=self.reporter.say,
        )  # fmt: skip
        feedback, weight = decide(take)
        return feedback.rulings, weight

    def finetune(self, iteration: int, society: Society, examples: Mapping[str, list[Example]]) -> Society:
        """Finetunes each adapter on its own examples, all in one compiled step, and returns the new society."""
        setup, config, say = self.setup, self.config, self.reporter.say
        checkpoints = Checkpoints(self.directory.store, layout.checkpoint(iteration))
        found = checkpoints.newest_whole({"adapters": society.stacked.weights}, say)
        if found is not None and found[0].finished:
            return setup.session.society(society.names, found[1]["adapters"], config.lora)
        plan = make_plan(
            setup.session.chat, setup.method.lessons, examples, config.finetuning, seed=config.seed,
            iteration=iteration, signals=setup.method.objective.uses_signals,
        )  # fmt: skip
        for remark in remarks_on(plan):
            say(remark)
        logger = MetricsLogger(self.directory.store, say, self.trackers)
        spent = training_sets_cost(self.directory.store, iteration)
        return Finetuning(setup, plan, checkpoints, logger, self.reporter, spent).run(society)

    def evaluate(self, method: Method, iteration: int, society: Society) -> None:
        """Evaluates a method on the held-out questions, with the society after `iteration` (0: before finetuning)."""
        file = layout.evaluation(method.name, iteration)
        title = f"iteration {iteration}: evaluation" if iteration else f"{method.name} (untuned)"
        with self._remedy_for_broken_weights(iteration):
            stage = self._run_debate_stage(method.evaluation, society, "eval", self.setup.task.eval, file, title)
        if self.config.metrics.diversity:
            self.measure_diversity(method, iteration, society, read_transcripts(stage))
        # Silent: each stage reports and repairs its own damage.
        self.trackers.results(self.directory.publish(self.config, self.setup.task))

    def ends_after(self, iteration: int) -> bool:
        """Reports to the user whether the society still improves. Returns whether the run ends.

        It ends only with `stop_when_collapsing`, after an iteration in which the society collapses.
        """
        store, results = self.directory.store, read_results(self.directory.results_file)
        task, method = self.setup.task.name, self.setup.method.name
        ours = [own for own in results if (own.method, own.iteration, own.task) == (method, iteration, task)]
        monitor = ours[0].monitor if ours else None
        if monitor is not None:
            self.reporter.say(f"iteration {iteration}: {monitor.verdict}: {monitor.reason}.")
        if not self.config.stop_when_collapsing:
            return False
        # Decided by an earlier start, or now.
        is_last = last_iteration(store, self.config) == iteration < self.config.iterations
        if not is_last and monitor is not None and monitor.verdict == "collapsing":
            record_end(store, iteration, monitor)
            is_last = True
        if is_last:
            self.reporter.say(f"The run ends after iteration {iteration}, because the society collapses.")
        return is_last

    def measure_diversity(
        self, method: Method, iteration: int, society: Society, transcripts: Sequence[Transcript]
    ) -> None:
        """Measures what `metrics.diversity` names on evaluation transcripts. With a single agent there is nothing to do."""
        speakers = method.evaluation.speakers[-1] if society.names else (None,) * method.evaluation.agents
        stage = DiversityStage(self.setup, society, speakers, self.reporter)
        title = f"iteration {iteration}" if iteration else method.name
        for measure in self.config.metrics.diversity if method.evaluation.agents > 1 else ():
            file = layout.diversity(method.name, iteration, measure)
            stage.run(measure, transcripts, StageFile(self.directory.store, file, self.reporter.say), title)

    def _run_debate_stage(
        self, rules: Protocol, society: Society, name: str, questions: Sequence[Question], file: str, title: str
    ) -> StageFile:
        # The base model says the same as an adapter without effect, at less cost and with the same inputs in all methods.
        debate = self.setup.debate(society, name, rules.with_base_for(society.without_effect))
        stage = StageFile(self.directory.store, file, self.reporter.say)
        run_debate(debate, questions, stage, self.setup, self.reporter, title, self.siblings)
        return stage

    @contextlib.contextmanager
    def _remedy_for_broken_weights(self, iteration: int) -> Generator[None]:
        """If the society that `iteration` finetuned gives logits that are not finite, says how to finetune it again.

        Its weights can be finite, but so large that the logits are not.
        """
        checkpoint = self.directory.checkpoint(iteration)
        try:
            yield
        except NonFiniteLogits as error:
            if not self.directory.store.exists(layout.checkpoint(iteration)):  # imported adapters, or the base model
                raise
            raise NonFiniteLogits(
                f"{error} To finetune iteration {iteration} again, delete {checkpoint} and run the same command with a "
                "lower learning_rate of these adapters."
            ) from error


def read_transcripts(file: StageFile) -> list[Transcript]:
    """The transcripts of a debate stage, in the order of its questions."""
    return [Transcript.from_dict(line) for line in file.each_line()]


def run(
    config: ExperimentConfig,
    reporter: Reporter | None = None,
    session: Session | None = None,
    siblings: Sequence[str | pathlib.Path] = (),
) -> list[Result]:
    """Runs an experiment, or the rest of one that was stopped, and returns the results in results.json.

    `session` is used if given, otherwise one is opened; it must have the model and the mesh of the configuration.
    A debate stage with the same inputs as a finished one, of this run or of a run in the directories `siblings`, is copied
    from there instead of computed.
    Raises UserError for every error that the user can correct; the work done so far is kept.
    """
    config = same_config(config)
    validate(config)
    config = choose_mesh(config)
    config = with_own_evaluation(config)
    check_baselines(config)
    method = make_method(config.method, config)
    check_diversity(config, method)
    check_packages(config.logging)
    if method.lessons and not config.task.train_questions:
        raise UserError("task.train_questions is 0, expected at least 1 to debate and finetune on.")
    reporter = reporter or SilentReporter()
    directory = RunDirectory(config.run_dir)
    check_place(config.logging, directory.store)
    config, state = take(directory, config, reporter)
    try:
        if state == "finished":
            task = load_task(config.task, config.seed)
            directory.keep_questions(task, reporter.say)
            results = directory.publish(config, task, reporter.say)
            if not directory.store.exists(layout.REPORT):
                write_own_report(directory, reporter.say)
            reporter.say(
                f"The run in {directory.path} is finished; nothing to do. For another run, give another --run-dir."
            )
        else:
            stores = tuple(RunDirectory(path).store for path in siblings)
            results = _run_remaining_stages(directory, config, state, reporter, session, stores)
    except BaseException as error:
        _record_stop(directory, error)
        raise
    directory.release()
    return results


def take(
    directory: RunDirectory, config: ExperimentConfig, reporter: Reporter
) -> tuple[ExperimentConfig, Literal["new", "resumed", "finished"]]:
    """Locks the run directory for this process. Returns (the configuration, the state of the run).

    If adapters were imported into the directory, the configuration gets their rank, alpha and targets. Nothing is
    loaded before, so a second process on the same directory fails at once.
    """
    if directory.has_imported:
        config = with_imported(config, directory)
        lora = config.lora
        reporter.say(
            f"The agents start from the adapters in {directory.initial}: rank {lora.rank}, alpha {lora.alpha:g}, "
            f"on {', '.join(lora.targets)}."
        )
    return config, directory.take(config, reporter.say, make_method(config.method, config).adapters)


def evaluate(
    run_dir: str | pathlib.Path,
    task: TaskConfig,
    *,
    speakers: Speakers | None = None,
    iteration: int | None = None,
    label: str | None = None,
    reporter: Reporter | None = None,
    session: Session | None = None,
) -> Result:
    """Evaluates the society of a run on another task (zero-shot), on other questions of its task, or with other speakers.

    `speakers` is as in `DebateConfig.evaluation_speakers`; None: as in the run. `iteration` defaults to the last finished
    one; a method without finetuning has none, and its result is that of iteration 0. Transcripts and results are written to
    RUN_DIR/evaluations/LABEL. The result is also added to the run's results.json, as task LABEL. If another process is
    working on the run, that process adds it when it next writes results.json. Raises UserError if there is no such run or
    iteration, and if the asked speakers are those that the method has anyway.
    """
    reporter = reporter or SilentReporter()
    directory = RunDirectory(run_dir)
    trained = directory.config()
    debate = dataclasses.replace(trained.debate, evaluation_speakers=speakers or trained.debate.evaluation_speakers)
    config = dataclasses.replace(trained, task=task, debate=debate)
    _check_speakers(config)
    is_tuned = bool(make_method(trained.method, trained).lessons)
    iteration = chosen_iteration(directory, trained.iterations, iteration) if is_tuned else 0
    label = label or _label_of(config, trained.task)
    if "/" in label or label in (".", "..", trained.task.name):
        raise UserError(
            f"The label {label!r} cannot be used for this evaluation: give --label another name, without '/'."
        )
    nested = directory.evaluation(label)
    config = dataclasses.replace(config, run_dir=str(nested.path))
    state = nested.take(config, reporter.say)
    try:
        setup = prepare(config, session)
        if state == "new":
            nested.create(config)
        nested.keep_questions(setup.task, reporter.say)
        society = setup.fresh_society()
        if is_tuned:
            society = restore_society(directory.store, layout.checkpoint(iteration), society)
        Experiment(setup, nested, reporter).evaluate(setup.method, iteration, society)
        nested.finish()
    except BaseException as error:
        _record_stop(nested, error)
        raise
    directory.publish_evaluations(reporter.say)
    found = next(result for result in read_results(nested.results_file) if result.iteration == iteration)
    return dataclasses.replace(found, task=label)


def _label_of(config: ExperimentConfig, trained: TaskConfig) -> str:
    """The name of an evaluation with this configuration, of a run that was trained on the task `trained`."""
    task, speakers = config.task, config.debate.evaluation_speakers
    name = task.name if task.name != trained.name else f"{task.name}_{task.eval_questions}"
    return name if speakers == "own" else f"{name}_{speakers}"


def _check_speakers(config: ExperimentConfig) -> None:
    """Raises UserError if the configuration asks for other speakers in evaluations, but they would be the same ones."""
    asked = config.debate.evaluation_speakers
    own = dataclasses.replace(config, debate=dataclasses.replace(config.debate, evaluation_speakers="own"))
    evaluations = [make_method(config.method, each).evaluation for each in (config, own)]
    if asked != "own" and evaluations[0] == evaluations[1]:
        same = {"swapped": "the same adapters speak in all rounds", "first": "the same adapters speak for all agents"}
        raise UserError(
            f"The speakers cannot be {asked!r} in an evaluation of {config.method}: {same[asked]}. Leave out --speakers."
        )


def restore_society(store: Store, checkpoint: str, template: Society) -> Society:
    """Reads the society of a finished checkpoint, with the shapes and shardings of `template`.

    Raises UserError if the checkpoint is not finished or has other adapters than `template`.
    """
    found = Checkpoints(store, checkpoint, read_only=True)
    info = found.finished()
    if info is None:
        raise UserError(f"{found.directory} holds no finished checkpoint: let `mft run` finish one first.")
    if info.names != template.names:
        raise UserError(
            f"{found.directory} holds the adapters {', '.join(info.names)}, expected {', '.join(template.names)}: use "
            "the method and the number of agents that they were made with."
        )
    weights = found.restore(info.step, {"adapters": template.stacked.weights})["adapters"]
    return dataclasses.replace(template, adapters=template.stacked._replace(weights=weights), _stacks={})


def _run_remaining_stages(
    directory: RunDirectory,
    config: ExperimentConfig,
    state: str,
    reporter: Reporter,
    session: Session | None,
    siblings: tuple[Store, ...],
) -> list[Result]:
    """Runs the remaining stages of a run whose directory this process has locked, and returns its results."""
    # `prepare` runs before anything is written, so that an error in the configuration leaves no directory behind.
    experiment = Experiment(prepare(config, session), directory, reporter, siblings)
    if state == "new":
        experiment.initial_society()  # fails if imported adapters do not fit the method or the base model
        directory.create(config)
    else:
        reporter.say(f"Resuming the run in {directory.path}.")
    directory.keep_questions(experiment.setup.task, reporter.say)
    read_verdicts(directory.store, experiment.setup.task.name)  # fails now if a line is broken, and not after a debate
    trackers = open_trackers(config, directory.store, reporter.say)
    try:
        dataclasses.replace(experiment, trackers=trackers).run()
    finally:
        trackers.close()
    results = directory.publish(config, experiment.setup.task, reporter.say)
    write_own_report(directory, reporter.say)
    directory.finish()
    return results


def _record_stop(directory: RunDirectory, error: BaseException) -> None:
    """Records why the run stopped, and unlocks its directory. Writes nothing if no run was created there."""
    status = "failed" if isinstance(error, Exception) else "interrupted"
    with deferred():
        directory.stop(status, f"{type(error).__name__}: {error}")
