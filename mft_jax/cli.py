"""The `mft` command: reads arguments, calls the library, prints. A user's mistake is one sentence, never a traceback."""

import dataclasses
import os
import sys
from typing import Annotated, Literal

# Before anything imports them: what these libraries print about themselves is not what a user asked for.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tyro
from rich.console import Console

from mft_jax.config import DebateConfig, ExperimentConfig, ModelSource, load_config, validate
from mft_jax.errors import UserError
from mft_jax.parallel.memory import keep_freed_memory

USAGE = """usage: mft COMMAND ...

commands:
  mft run CONFIG.yaml [--field value ...] [--run-dir DIR]   the whole experiment; goes on with one that was stopped
  mft eval RUN_DIR --task NAME [...]                        the agents of a run on another task
  mft export RUN_DIR --to peft|merged|chat-jsonl OUT        agents for PEFT and vLLM, whole checkpoints, training sets
  mft import-adapters RUN_DIR PEFT_DIR... --config YAML     PEFT adapters for a run in RUN_DIR to start from

`mft COMMAND --help` explains every option.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluates the finetuned society of a run on another task, or on other questions, without training."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """Directory of the run."""
    task: str
    """arithmetic, addition, gsm8k, math, mmlu, or jsonl for your own questions."""
    eval_questions: int | None = None
    """How many questions; none: as many as the run was evaluated on."""
    eval_path: str | None = None
    """jsonl only: file of {"question", "answer"} lines."""
    data_dir: str | None = None
    """gsm8k, math and mmlu only: directory with the data set's original files; none: they are downloaded."""
    cache_dir: str | None = None
    """Where prepared data sets are kept; none: where the run keeps them."""
    iteration: int | None = None
    """Which society; none: the last one."""
    label: str | None = None
    """Name of this evaluation in results.json; none: the task's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Writes agents of a run for other programs to read."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """Directory of the run."""
    out: Annotated[str, tyro.conf.Positional]
    """New directory to write, whole or not at all."""
    to: Literal["peft", "merged", "chat-jsonl"]
    """peft: an adapter for each agent, for PEFT and vLLM; merged: an ordinary checkpoint for each; chat-jsonl: what each
    agent was finetuned on."""
    iteration: int | None = None
    """Which society; none: the last one, and of training sets all."""
    agents: tuple[str, ...] = ()
    """Names such as generator_0 critic_2; none: all."""
    max_shard_size: str = "5GB"
    """merged only: largest file of weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Puts PEFT adapters into a new run directory: `mft run CONFIG.yaml --run-dir RUN_DIR` then starts from them."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """Directory of the run to come."""
    adapters: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A directory with generator_0 .. critic_{N-1}, or 2N adapters, the generators' and then the critics'."""
    config: str
    """The configuration that the run will have."""
    model: ModelSource
    debate: DebateConfig


def run_command(arguments: list[str], console: Console) -> None:
    from mft_jax.experiment import run
    from mft_jax.report.progress import TerminalReporter
    from mft_jax.report.table import results_table

    path = next((a for a in arguments if a.endswith((".yaml", ".yml"))), None)
    if path is None and not {"-h", "--help"} & set(arguments):
        raise UserError("mft run needs a configuration: mft run CONFIG.yaml, for example configs/quickstart.yaml.")
    default = ExperimentConfig() if path is None else load_config(path)
    rest = [a for a in arguments if a is not path]
    config = tyro.cli(ExperimentConfig, default=default, args=rest, prog="mft run CONFIG.yaml")
    validate(config, "command line")
    results = run(config, TerminalReporter(console))
    console.print(results_table(results, title=f"{config.task.name}, {results[0].n} held-out questions"))
    console.print(f"Everything is in {config.run_dir}.", highlight=False, soft_wrap=True)


def eval_command(arguments: list[str], console: Console) -> None:
    from mft_jax.experiment import evaluate
    from mft_jax.report.progress import TerminalReporter
    from mft_jax.report.table import results_table
    from mft_jax.runs.directory import RunDirectory

    options = tyro.cli(EvalOptions, args=arguments, prog="mft eval")
    trained = RunDirectory(options.run_dir).config()
    questions = options.eval_questions or trained.task.eval_questions
    if options.task == "jsonl" and not (options.eval_path or trained.task.eval_path):
        raise UserError("mft eval --task jsonl needs the questions: give --eval-path FILE.")
    if options.task == trained.task.name:  # its training questions stay known, so that none of them is asked
        task = dataclasses.replace(
            trained.task,
            eval_path=options.eval_path or trained.task.eval_path,
            data_dir=options.data_dir or trained.task.data_dir,
        )
    else:
        task = dataclasses.replace(
            trained.task,
            name=options.task,
            train_questions=0,
            train_path=None,
            eval_path=options.eval_path,
            data_dir=options.data_dir,
        )
    cache_dir = options.cache_dir or trained.task.cache_dir
    task = dataclasses.replace(task, eval_questions=questions, cache_dir=cache_dir)
    reporter = TerminalReporter(console)
    result = evaluate(options.run_dir, task, iteration=options.iteration, label=options.label, reporter=reporter)
    console.print(results_table([result], title=f"{result.task}, {result.n} questions"))


def export_command(arguments: list[str], console: Console) -> None:
    from mft_jax.exchange import export

    options = tyro.cli(ExportOptions, args=arguments, prog="mft export")
    written = export(
        options.run_dir,
        options.out,
        to=options.to,
        iteration=options.iteration,
        agents=options.agents,
        max_shard_size=options.max_shard_size,
    )
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def import_command(arguments: list[str], console: Console) -> None:
    from mft_jax.exchange import import_adapters

    path = next((a.removeprefix("--config=") for a in arguments if a.endswith((".yaml", ".yml"))), None)
    if path is None and not {"-h", "--help"} & set(arguments):
        raise UserError("mft import-adapters needs the configuration of the run to come: give --config CONFIG.yaml.")
    config = ExperimentConfig() if path is None else load_config(path)
    default = ImportOptions(
        run_dir=tyro.MISSING,
        adapters=tyro.MISSING,
        config=path or tyro.MISSING,
        model=config.model,
        debate=config.debate,
    )
    options = tyro.cli(ImportOptions, default=default, args=arguments, prog="mft import-adapters")
    config = dataclasses.replace(config, run_dir=options.run_dir, model=options.model, debate=options.debate)
    validate(config, "command line")
    lora = import_adapters(config, options.adapters)
    console.print(
        f"{2 * config.debate.agents} adapters (rank {lora.rank}, alpha {lora.alpha:g}) are in {config.run_dir}: "
        f"mft run {path} --run-dir {config.run_dir} starts from them.",
        highlight=False,
        soft_wrap=True,
    )


COMMANDS = {"run": run_command, "eval": eval_command, "export": export_command, "import-adapters": import_command}


def main() -> None:
    """Entry point: exit code 0 only on success."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    keep_freed_memory()
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"mft: there is no command {name!r}; the commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    try:
        COMMANDS[name](rest, Console())
    except UserError as error:
        print(f"mft: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("mft: stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
