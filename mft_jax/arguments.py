"""The arguments of the `mft` command: one dataclass per command, parsed by tyro. Imports no slow modules."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from mft_jax.config import (
    AskOptions,
    DebateConfig,
    ExperimentConfig,
    HostsConfig,
    ModelSource,
    Speakers,
    TaskConfig,
    load_config,
    load_grid,
)
from mft_jax.errors import UserError

USAGE = """Multiagent finetuning: agents over one base model debate, vote, and finetune themselves.

  mft run CONFIG.yaml [--field value ...] [--run-dir DIR]
  mft status RUN_DIR
  mft eval RUN_DIR --task NAME
  mft table RUN_DIR... [--against METHOD] [--answers]
  mft ask [RUN_DIR|MODEL] "QUESTION" [--json]
  mft plots RUN_DIR... -o DIR
  mft review RUN_DIR [--question ID --answer TEXT]
  mft report RUN_DIR... [-o report.html]
  mft export RUN_DIR --to peft|merged|chat-jsonl OUT
  mft import-adapters RUN_DIR PEFT_DIR... --config YAML
  mft bench CONFIG.yaml [--json OUT] [--compare OLD.json]
  mft plan CONFIG.yaml --topology v5e-8 [--fit] [--json]
  mft plan --against RUN_DIR [--topology v5e-8]
  mft --version

mft COMMAND --help explains every option of a command."""
# What --help shows for tuples, instead of an empty default.
SEVERAL_RUNS = arg(metavar="RUN_DIR", help_behavior_hint="(one or more)")
NO_AGENTS = arg(help_behavior_hint="(default: none)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Runs an experiment, or a grid of experiments. The same command resumes what was stopped."""

    config: Annotated[str, Positional, arg(metavar="CONFIG.yaml")]
    """File with the settings of the run, for example configs/quickstart.yaml; the options below override them. In the
    file of a grid, they override the settings that its cells share."""
    hosts: Annotated[HostsConfig, arg(name="")] = dataclasses.field(default_factory=HostsConfig)
    settings: Annotated[ExperimentConfig, arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """Shows the finished and the remaining stages of a run, or cells of a grid, and their cost."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run or of the grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluates the agents of a run, or of all finished runs of a grid, on another task or other questions, without training."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run, or of a grid: then all its finished runs are evaluated."""
    task: str | None = None
    """arithmetic, addition, gsm8k, math, mmlu, or jsonl for your own questions; None: the task of the run."""
    speakers: Speakers | None = None
    """swapped: critics answer first and generators later; first: agent 1's adapters for all; None: as in the run."""
    eval_questions: int | None = None
    """Number of questions; None: the number of the run."""
    eval_path: str | None = None
    """jsonl only: file of {"question", "answer"} lines."""
    data_dir: str | None = None
    """gsm8k, math and mmlu only: directory with the data set's original files; None: they are downloaded."""
    cache_dir: str | None = None
    """Directory of prepared data sets; None: that of the run."""
    iteration: int | None = None
    """Iteration whose agents are evaluated; None: the last finished one."""
    label: str | None = None
    """Name of this evaluation in results.json; None: made from the name of the task."""

    def evaluated_task(self, trained: TaskConfig) -> TaskConfig:
        """The task to evaluate on, given the task of the run. Raises UserError for a jsonl task without a file."""
        if self.task is None or self.task == trained.name:
            # It keeps its training questions, so that none of them is used for evaluation.
            task = dataclasses.replace(trained, validation=False)
        else:
            task = dataclasses.replace(
                trained,
                name=self.task,
                train_questions=0,
                validation=False,
                train_path=None,
                eval_path=None,
                data_dir=None,
            )
        given = {
            name: getattr(self, name)
            for name in ("eval_questions", "eval_path", "data_dir", "cache_dir")
            if getattr(self, name) is not None
        }
        task = dataclasses.replace(task, **given)
        if task.name == "jsonl" and task.eval_path is None and task.train_path is None:
            raise UserError("mft eval --task jsonl needs the questions: give --eval-path FILE.")
        return task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Review:
    """Proposes the training questions on which a person's verdict is worth most, or records verdicts. The next iteration
    of the run uses them."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run, finished or not."""
    limit: int = 20
    """Number of questions to show."""
    json: bool = False
    """Prints a JSON array instead of text."""
    question: str | None = None
    """Id of a question: shows it alone, or records the verdict that is given with the next four options."""
    answer: str | None = None
    """Its right answer."""
    right: Annotated[tuple[int, ...], NO_AGENTS] = ()
    """Agents, counted from 1, whose answers are right."""
    wrong: Annotated[tuple[int, ...], NO_AGENTS] = ()
    """Agents whose answers are wrong."""
    best: int | None = None
    """The agent whose answer is right and better than the others."""
    iteration: int | None = None
    """Iteration of the debate with the marked answers; None: the newest one."""
    round: int | None = None
    """Round of the marked answers; None: the last one."""
    add: str | None = None
    """File of verdicts to add, such as one that was saved from the report."""
    simulate: int | None = None
    """For experiments: number of verdicts to make from the reference answers of training questions."""
    order: Literal["worth", "random"] = "worth"
    """Which questions are simulated first: those on which a verdict is worth most, or random ones."""
    seed: int = 0
    """Random seed of the order."""
    out: str | None = None
    """New file for the simulated verdicts; None: feedback.jsonl of the run."""

    @property
    def has_verdict(self) -> bool:
        return self.answer is not None or bool(self.right or self.wrong) or self.best is not None

    def check(self) -> None:
        """Raises UserError if the options do not go together."""
        if self.limit < 1:
            raise UserError(f"--limit is {self.limit}, expected at least 1.")
        if self.has_verdict and self.question is None:
            raise UserError("A verdict concerns a question: give its id with --question.")
        if [self.question is not None, self.add is not None, self.simulate is not None].count(True) > 1:
            raise UserError("--question, --add and --simulate do different things: give one of them.")
        if self.out is not None and self.simulate is None:
            raise UserError("--out is the file of simulated verdicts: give their number with --simulate.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """Holds one debate on a question of your own, and shows it while it is held. Nothing is written."""

    source: Annotated[str | None, Positional, arg(metavar="[RUN_DIR|MODEL]")] = None
    """Directory of a run, or a model as a checkpoint directory or hub name; it may be left out: the base model in the
    package is asked then."""
    question: Annotated[str | None, Positional, arg(metavar="QUESTION")] = None
    """The question, in quotes."""
    others: Annotated[tuple[str, ...], Positional, arg(metavar="")] = ()
    """Nothing: a question of several words needs quotes."""
    json: bool = False
    """Prints one JSON object instead of the debate."""
    options: Annotated[AskOptions, arg(name="")] = dataclasses.field(default_factory=AskOptions)

    def asked(self) -> tuple[str | None, str]:
        """(the run or the model, None for the base model in the package; the question).

        Raises UserError if the question is missing, empty or not in quotes.
        """
        if self.others:
            raise UserError(
                "mft ask takes a question, and before it a run or a model, but got "
                f"{len(self.others) + 2} words: put the question in quotes."
            )
        source, question = (None, self.source) if self.question is None else (self.source, self.question)
        if question is None or (source is None and os.path.isdir(question)):
            where = "" if question is None else f" {question}"
            raise UserError(f'The question is missing: mft ask{where} "QUESTION".')
        if not question.strip():
            raise UserError("The question is empty: write one, in quotes.")
        return source, question


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Writes one HTML file with the results, charts and debates of one or several runs, finished or not."""

    run_dirs: Annotated[tuple[str, ...], Positional, SEVERAL_RUNS]
    """Directories of the runs, which are shown side by side; that of a grid stands for all its cells."""
    out: Annotated[str, arg(aliases=["-o"])] = "report.html"
    """HTML file to write. It needs no network; debates beyond 5 MB are written to a folder beside it."""
    serve: bool = False
    """Writes no file, but shows the report of one run or grid in a browser of this machine until Ctrl-C. Verdicts that a
    person gives there are written into the directory of the run."""
    port: int = 0
    """Port of --serve; 0: a free one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes the agents of a run, or their training sets, in formats that other programs read."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run."""
    out: Annotated[str, Positional, arg(metavar="OUT")]
    """New directory to write; it is not created if an error occurs."""
    to: Literal["peft", "merged", "chat-jsonl"]
    """peft: adapters, for PEFT and vLLM; merged: ordinary checkpoints; chat-jsonl: the training set of each agent."""
    iteration: int | None = None
    """Iteration whose agents are written; None: the last finished one, or for chat-jsonl all finished ones."""
    agents: tuple[str, ...] = ()
    """Names of agents, such as generator_0 critic_2; none: all agents."""
    max_shard_size: str = "5GB"
    """merged only: maximum size of a file of weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plots:
    """Draws accuracy against compute and over iterations, as SVG and PNG, from the results of one or several runs.

    Runs that differ in their seed only are averaged.
    """

    run_dirs: Annotated[tuple[str, ...], Positional, SEVERAL_RUNS]
    """Directories of runs and grids."""
    out: Annotated[str, arg(aliases=["-o"])]
    """Directory for the plots; files of the same names are replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Prints a Markdown table of the results of runs and grids: means over seeds, costs, and paired comparisons."""

    run_dirs: Annotated[tuple[str, ...], Positional, SEVERAL_RUNS]
    """Directories of runs and grids."""
    against: str | None = None
    """Method that the others are compared with on the same questions, by the exact McNemar test."""
    answers: bool = False
    """Adds what happened to the answers: votes of the first and the last round, and changes between right and wrong."""
    last: bool = False
    """Only the last iteration of each method."""
    equal_cost: bool = False
    """Adds the vote over as many answers of the base model as cost as much as the row, training included."""
    diversity: bool = False
    """Adds how much the agents differ: one minus the consensus, and the measures of metrics.diversity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportAdapters:
    """Imports PEFT adapters into a new run directory; `mft run CONFIG.yaml --run-dir RUN_DIR` then starts from them."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run that will start from the adapters."""
    adapters: Annotated[tuple[str, ...], Positional, arg(metavar="PEFT_DIR")]
    """A directory written by `mft export`, or one adapter directory per agent: N generators, then N critics."""
    config: Annotated[str, arg(metavar="CONFIG.yaml")]
    """File with the settings of the run."""
    model: ModelSource
    debate: DebateConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measures the speed of sampling, finetuning, scoring and grading on the present devices, and writes no run."""

    config: Annotated[str, Positional, arg(metavar="CONFIG.yaml")]
    """File with the settings to measure, for example configs/quickstart.yaml; the options below override them."""
    json: str | None = None
    """File for the report as JSON; None: it is only printed."""
    compare: str | None = None
    """Earlier report, written with --json, to compare with."""
    repeats: int = 3
    """Number of runs of each measurement; the median counts."""
    settings: Annotated[ExperimentConfig, arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimates memory, time and price of a run on a TPU slice, without a TPU and without the weights of the model."""

    config: Annotated[str | None, Positional, arg(metavar="CONFIG.yaml")] = None
    """File with the settings of the run, for example configs/llama3_math.yaml; the options below override them."""
    topology: str | None = None
    """The slice, such as v5e-8, v5p-16 or v6e-8; here: the present devices."""
    fit: bool = False
    """Searches for the fastest settings of rows, mesh, agents_at_once and remat that fit."""
    against: str | None = None
    """Directory of a run, instead of CONFIG.yaml: plans its configuration and compares the estimate with what the run took."""
    json: bool = False
    """Prints a JSON object instead of tables."""
    lengths_from: str | None = None
    """Directory of a run whose texts have the lengths to plan with; None: lengths that are assumed for the task."""
    price: float | None = None
    """Dollars per chip and hour; None: from a table of on-demand prices."""
    layers: tuple[int, int] = (2, 4)
    """Numbers of layers with which programs without a loop over layers are compiled; their difference gives the other layers."""
    settings: Annotated[ExperimentConfig, arg(name="")]

    def place(self) -> str:
        """The topology. Raises UserError if the options do not go together, or one is missing."""
        if (self.config is None) == (self.against is None):
            raise UserError("mft plan needs a configuration, or --against RUN_DIR, but not both.")
        if self.topology is None and self.against is None:
            raise UserError("mft plan needs the slice to plan for: give --topology, for example --topology v5e-8.")
        if self.against is not None and self.fit:
            raise UserError("--fit changes the settings of a run, which --against compares: give one of the two.")
        small, large = self.layers
        if not 1 <= small < large:
            raise UserError(
                f"--layers is {small} {large}, expected two numbers of layers from 1, the smaller one first."
            )
        if self.price is not None and not 0 <= self.price < math.inf:
            raise UserError(f"--price is {self.price:g}, expected at least 0 dollars per chip and hour.")
        if self.topology == "":
            raise UserError("--topology is empty, expected the name of a slice, such as v5e-8, or here.")
        return self.topology or "here"


Command = Run | Status | Eval | Table | Ask | Plots | Review | Report | Export | ImportAdapters | Bench | Plan
NAMES = (
    "run",
    "status",
    "eval",
    "table",
    "ask",
    "plots",
    "review",
    "report",
    "export",
    "import-adapters",
    "bench",
    "plan",
)  # tyro derives them from the names of the classes


def read_arguments(arguments: Sequence[str]) -> Command:
    """Parses the command and its options. Settings that are not given take their values from the configuration file.

    Exits after a request for help (exit code 0) and after wrong arguments (exit code 2), as tyro does. Raises UserError
    if the configuration file cannot be read.
    """
    path, command = _configuration_file(arguments)
    config = ExperimentConfig() if path is None else _read_settings(path, command)
    return tyro.cli(_commands(config), prog="mft", description=USAGE, args=arguments)


def _read_settings(path: str, command: type) -> ExperimentConfig:
    """The settings in a configuration file; for `mft run`, also those that the cells of a grid share."""
    grid = load_grid(path) if command is Run else None
    return load_config(path) if grid is None else grid.shared


def _configuration_file(arguments: Sequence[str]) -> tuple[str | None, type]:
    """(path of the configuration file in the arguments, the command). The path is None if there is none.

    It is also None if the arguments are wrong.

    Only tyro can tell the path from the value of an option, so it parses the arguments twice: here for the path, and in
    `read_arguments` with the values of the file as defaults. The second parse reports wrong arguments.
    """
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    try:
        command = tyro.cli(_commands(ExperimentConfig()), args=without_help, console_outputs=False)
    except SystemExit:
        return None, type(None)
    return command.config if isinstance(command, Run | ImportAdapters | Bench | Plan) else None, type(command)


def _commands(config: ExperimentConfig) -> Any:
    """The type that tyro parses: the union of the commands, with the values of `config` as defaults."""
    run = Run(config=tyro.MISSING, settings=config)
    importing = ImportAdapters(
        run_dir=tyro.MISSING, adapters=tyro.MISSING, config=tyro.MISSING, model=config.model, debate=config.debate
    )
    measuring = Bench(config=tyro.MISSING, settings=config)
    planning = Plan(settings=config)
    with_defaults = (
        Annotated[Run, subcommand(default=run)]
        | Annotated[ImportAdapters, subcommand(default=importing)]
        | Annotated[Bench, subcommand(default=measuring)]
        | Annotated[Plan, subcommand(default=planning)]
    )
    return with_defaults | Status | Eval | Table | Ask | Plots | Review | Report | Export
