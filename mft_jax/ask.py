"""One question of a person's own, debated by the agents of a run, or by a base model that speaks for all agents.

The debate is that of an evaluation: the same session, sampler, rules and methods as in `mft run`. Nothing is written.
"""

import dataclasses
import os
import pathlib
import time
from typing import Any

import jax

from mft_jax.config import AskOptions, ExperimentConfig, MeshConfig, ModelSource, validate
from mft_jax.debate import Protocol, Transcript, Watcher
from mft_jax.errors import UserError
from mft_jax.experiment import restore_society
from mft_jax.methods import Method, make_method
from mft_jax.metrics.costs import sampling_cost
from mft_jax.metrics.ledger import Cost
from mft_jax.models.society import Society
from mft_jax.runs import layout
from mft_jax.runs.adapters import chosen_iteration
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.grid_directory import GridDirectory, is_grid
from mft_jax.session import Session, open_session
from mft_jax.setup import Setup, check_session
from mft_jax.tasks import Question, Task, load_task
from mft_jax.tasks.load import check_name
from mft_jax.tasks.rules import without_questions

NAME = "ask"  # of the debate and of the question; part of every random key
STEPS_PER_DISPATCH = 8  # few, so that a watcher sees the texts grow; the texts do not depend on it


@dataclasses.dataclass(frozen=True)
class Asked:
    """The debate on a question, and its cost."""

    transcript: Transcript
    cost: Cost
    agreeing: int
    """How many agents gave the answer of the vote in their last round."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: the transcript without `id`, `gold` and `correct`, and in addition `agreeing` and `cost`."""
        plain = dataclasses.asdict(self.transcript)
        for name in ("id", "gold", "correct"):
            del plain[name]
        return plain | {"agreeing": self.agreeing, "cost": self.cost.to_dict()}


@dataclasses.dataclass(frozen=True)
class Panel:
    """The agents that can be asked."""

    setup: Setup
    society: Society
    iteration: int | None  # that finetuned the society; None: the base model speaks for all agents

    @property
    def protocol(self) -> Protocol:
        """The rules of the debate, with the base model in the place of adapters that are missing or have no effect."""
        rules, society = self.setup.method.evaluation, self.society
        asked = {name for row in rules.speakers for name in row if name is not None}
        return rules.with_base_for(asked.difference(society.names).union(society.without_effect))

    def ask(self, question: str, watcher: Watcher | None = None) -> Asked:
        """Holds the debate on a question; `watcher` follows it.

        Raises UserError if the question is empty, or leaves no room for an answer in the model's context.
        """
        asked = check_question(question)
        self._check_length(asked)
        started = time.perf_counter()
        setup = dataclasses.replace(self.setup, task=dataclasses.replace(self.setup.task, eval=(asked,)))
        debate = setup.debate(self.society, NAME, self.protocol)
        (transcript,), usages = debate.run([asked], watcher=watcher)
        cost = sampling_cost(usages, self.setup.session.model, self.setup.config.lora)
        cost = dataclasses.replace(cost, wall_seconds=time.perf_counter() - started)
        return Asked(transcript, cost, self.count_agreeing(transcript))

    def count_agreeing(self, transcript: Transcript) -> int:
        """How many agents gave the answer of the vote in the last round."""
        last = [agent.answers[-1] for agent in transcript.agents if agent.answers]
        vote, equivalent = transcript.vote, self.setup.task.equivalent
        return sum(answer is not None and vote is not None and equivalent(vote, answer) for answer in last)

    def _check_length(self, question: Question) -> None:
        session, prompts = self.setup.session, self.setup.task.prompts
        length, room = len(session.chat.prompt([prompts.first(question.text)])), session.model.max_positions
        if length >= room:
            raise UserError(
                f"The question has {length:,} tokens with its prompt, but the model's context holds {room:,}, answer "
                "included: ask a shorter question, or a model with a longer context."
            )

    def describe(self) -> dict[str, Any]:
        """Who debates, as plain values for JSON."""
        config, rules = self.setup.config, self.protocol
        return {
            "model": config.model.path or "the base model in the package",
            "run": None if self.iteration is None else config.run_dir,
            "method": self.setup.method.name,
            "iteration": self.iteration,
            "task": self.setup.task.name,
            "seed": config.seed,
            "speakers": [list(row) for row in rules.speakers],
        }


def check_question(text: str) -> Question:
    """The question to debate. Raises UserError if it is empty, or is not text."""
    if not text.strip():
        raise UserError("The question is empty: write one, in quotes.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that are not UTF-8
        raise UserError("The question is not valid UTF-8: write it in the encoding of the terminal.") from error
    return Question(NAME, text.strip(), None)


def open_panel(
    source: str | None = None,
    options: AskOptions = AskOptions(),  # noqa: B008  (frozen)
    session: Session | None = None,
) -> Panel:
    """Loads the agents of a run, or a base model that speaks for all agents.

    `source` is the directory of a run, or a checkpoint directory or hub name of a model; None: the base model in the
    package. `session` is used if given, otherwise one is opened.

    Raises UserError for a directory that is neither a run nor a model, a run without a finished iteration, an unknown
    method or task, and a method whose adapters the run does not have.
    """
    run = _find_run(source)
    config = _config_of(source, options, run)
    validate(config, "mft ask")
    method, task = make_method(config.method, config), _rules_of_task(config, source, options, run)
    trained = None if run is None else _trained_agents(run, method, options.iteration)
    if trained is None and options.iteration is not None:
        reason = "a model has no iterations" if run is None else f"the method {method.name} is not finetuned"
        raise UserError(f"--iteration is {options.iteration}, but {reason}: leave it out, or ask a finetuned run.")
    session = session or open_session(config.model, config.mesh)
    check_session(session, config.model)
    setup = Setup(dataclasses.replace(config, lora=session.resolved(config.lora)), session, task, method)
    if run is None or trained is None:
        return Panel(setup, Society(), None)
    names, iteration = trained
    template = session.fresh_society(names, setup.config.lora, config.seed)
    return Panel(setup, restore_society(run.store, layout.checkpoint(iteration), template), iteration)


def _trained_agents(run: RunDirectory, method: Method, iteration: int | None) -> tuple[tuple[str, ...], int] | None:
    """(all adapters of the run, the iteration to take them from); None if the method speaks with the base model only.

    Raises UserError if the run has not trained the adapters of the method, or has not finished the iteration.
    """
    needed = {name for row in method.evaluation.speakers for name in row if name is not None}
    if not needed:
        return None
    config = run.config()
    own = make_method(config.method, config)
    missing = sorted(needed.difference(own.adapters))
    if missing:
        raise UserError(
            f"The method {method.name} needs the adapter {missing[0]}, but {run.path} has "
            f"{', '.join(own.adapters) or 'none'}: ask with its own method, {own.name}, or with one that is not "
            "finetuned, such as debate."
        )
    return own.adapters, chosen_iteration(run, config.iterations, iteration)


def _find_run(source: str | None) -> RunDirectory | None:
    """The run in a directory; None if `source` is a model. Raises UserError for any other directory."""
    if source is None or not ("://" in source or os.path.isdir(os.path.expanduser(source))):
        return None
    if is_grid(source):
        cells = [cell.name for cell in GridDirectory(source).read()[0]]
        raise UserError(f"{source} is a grid of runs: give the directory of one, such as {source}/{cells[0]}.")
    run = RunDirectory(source)
    if run.exists or not run.store.is_local:
        return run
    if not (pathlib.Path(source).expanduser() / "config.json").is_file():
        raise UserError(
            f"{source} is neither a run (it has no config.yaml) nor a model (it has no config.json): give the directory "
            "of one of the two."
        )
    return None


def _config_of(source: str | None, options: AskOptions, run: RunDirectory | None) -> ExperimentConfig:
    """The configuration of the run, or a default one, with the options."""
    if run is not None:
        config = dataclasses.replace(run.config(), run_dir=str(run.path))
        if config.mesh.devices > len(jax.devices()):  # another mesh gives the same texts
            config = dataclasses.replace(config, mesh=MeshConfig())
    else:
        config = ExperimentConfig(method="debate", model=ModelSource(path=source))
        config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, max_new_tokens=512))
    given = lambda *names: {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.temperature is not None:  # it also replaces the run's temperature for evaluations
        config = dataclasses.replace(config, debate=dataclasses.replace(config.debate, evaluation_temperature=None))
    return dataclasses.replace(
        config,
        debate=dataclasses.replace(config.debate, **given("agents", "rounds")),
        sampling=dataclasses.replace(
            config.sampling, **given("max_new_tokens", "temperature"), steps_per_dispatch=STEPS_PER_DISPATCH
        ),
        **given("method", "seed"),
    )


def _rules_of_task(config: ExperimentConfig, source: str | None, options: AskOptions, run: RunDirectory | None) -> Task:
    """The task whose prompts and parser are used, without its questions."""
    if options.task is not None:
        check_name(options.task)
        return without_questions(options.task)
    if run is None:
        return without_questions("arithmetic" if source is None else "jsonl")
    if config.task.name == "jsonl":  # its parser depends on the answers in its file
        return dataclasses.replace(load_task(config.task, config.seed), train=(), eval=())
    return without_questions(config.task.name)
