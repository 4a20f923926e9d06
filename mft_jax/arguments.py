"""What the `mft` command takes: a dataclass for each command, read by tyro. Imports nothing slow."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from mft_jax.config import DebateConfig, ExperimentConfig, ModelSource, TaskConfig, load_config
from mft_jax.errors import UserError

USAGE = """Multiagent finetuning: agents over one base model debate, vote, and finetune themselves.

  mft run CONFIG.yaml [--field value ...] [--run-dir DIR]
  mft status RUN_DIR
  mft eval RUN_DIR --task NAME
  mft export RUN_DIR --to peft|merged|chat-jsonl OUT
  mft import-adapters RUN_DIR PEFT_DIR... --config YAML
  mft --version

mft COMMAND --help explains every option of a command."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The whole experiment; a run that was stopped is resumed by the same command."""

    config: Annotated[str, Positional, arg(metavar="CONFIG.yaml")]
    """File with the settings of the run, for example configs/quickstart.yaml; the options below replace single ones."""
    settings: Annotated[ExperimentConfig, arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What of a run is done, what is left, and what it has cost."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluates the finetuned agents of a run on another task, or on other questions, without training."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run."""
    task: str
    """arithmetic, addition, gsm8k, math, mmlu, or jsonl for your own questions."""
    eval_questions: int | None = None
    """Number of questions; None: as many as the run was evaluated on."""
    eval_path: str | None = None
    """jsonl only: file of {"question", "answer"} lines."""
    data_dir: str | None = None
    """gsm8k, math and mmlu only: directory with the data set's original files; None: they are downloaded."""
    cache_dir: str | None = None
    """Where prepared data sets are kept; None: where the run keeps them."""
    iteration: int | None = None
    """The iteration whose agents are evaluated; None: the last finished one."""
    label: str | None = None
    """Name of this evaluation in results.json; None: the task's."""

    def evaluated_task(self, trained: TaskConfig) -> TaskConfig:
        """The task to evaluate on, from that of the run. Raises UserError for a jsonl task without a file of questions."""
        if self.task == trained.name:  # it keeps its training questions, so that none of them is evaluated on
            task = trained
        else:
            task = dataclasses.replace(
                trained, name=self.task, train_questions=0, train_path=None, eval_path=None, data_dir=None
            )
        given = {
            name: getattr(self, name)
            for name in ("eval_questions", "eval_path", "data_dir", "cache_dir")
            if getattr(self, name) is not None
        }
        task = dataclasses.replace(task, **given)
        if task.name == "jsonl" and task.eval_path is None:
            raise UserError("mft eval --task jsonl needs the questions: give --eval-path FILE.")
        return task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes agents of a run, or what they were finetuned on, for other programs to read."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run."""
    out: Annotated[str, Positional, arg(metavar="OUT")]
    """New directory to write; it appears whole or not at all."""
    to: Literal["peft", "merged", "chat-jsonl"]
    """peft: adapters, for PEFT and vLLM; merged: ordinary checkpoints; chat-jsonl: what each agent was finetuned on."""
    iteration: int | None = None
    """The iteration whose agents are written; None: the last finished one, and for chat-jsonl all of them."""
    agents: tuple[str, ...] = ()
    """Names such as generator_0 critic_2; none: all."""
    max_shard_size: str = "5GB"
    """merged only: largest file of weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportAdapters:
    """Puts PEFT adapters into a new run directory: `mft run CONFIG.yaml --run-dir RUN_DIR` then starts from them."""

    run_dir: Annotated[str, Positional, arg(metavar="RUN_DIR")]
    """Directory of the run that will start from the adapters."""
    adapters: Annotated[tuple[str, ...], Positional, arg(metavar="PEFT_DIR")]
    """A directory as `mft export` writes it, or an adapter for each agent: the N generators', then the N critics'."""
    config: Annotated[str, arg(metavar="CONFIG.yaml")]
    """File with the settings that the run will have."""
    model: ModelSource
    debate: DebateConfig


Command = Run | Status | Eval | Export | ImportAdapters
NAMES = ("run", "status", "eval", "export", "import-adapters")  # as tyro makes them of the classes' names


def read_arguments(arguments: Sequence[str]) -> Command:
    """The command with its options; what is not given has the value of the configuration file.

    Ends the process, as tyro does, after a request for help (exit code 0) and after wrong arguments (2). Raises
    UserError for a configuration file that cannot be read.
    """
    path = _configuration_file(arguments)
    config = ExperimentConfig() if path is None else load_config(path)
    return tyro.cli(_commands(config), prog="mft", description=USAGE, args=arguments)


def _configuration_file(arguments: Sequence[str]) -> str | None:
    """The configuration that the arguments name; None if the command takes none, or if something in them is wrong.

    tyro alone knows which argument is the configuration and which is the value of an option, so it reads them once for
    this; when it reads them again, with the file's values as defaults, it explains whatever is wrong.
    """
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    try:
        command = tyro.cli(_commands(ExperimentConfig()), args=without_help, console_outputs=False)
    except SystemExit:
        return None
    return command.config if isinstance(command, Run | ImportAdapters) else None


def _commands(config: ExperimentConfig) -> Any:
    """The type that tyro reads: one of the commands, with `config` for the settings that are not given."""
    run = Run(config=tyro.MISSING, settings=config)
    importing = ImportAdapters(
        run_dir=tyro.MISSING, adapters=tyro.MISSING, config=tyro.MISSING, model=config.model, debate=config.debate
    )
    with_defaults = Annotated[Run, subcommand(default=run)] | Annotated[ImportAdapters, subcommand(default=importing)]
    return with_defaults | Status | Eval | Export
