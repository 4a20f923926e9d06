"""The `mft` command: reads the arguments, calls the library and prints. A UserError is printed without a traceback.

The arguments are read before slow modules such as JAX are imported. Each command imports the modules that it needs.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console

from mft_jax import __version__, signals
from mft_jax.arguments import (
    NAMES,
    USAGE,
    Ask,
    Bench,
    Command,
    Eval,
    Export,
    ImportAdapters,
    Plan,
    Plots,
    Report,
    Review,
    Run,
    Status,
    Table,
    read_arguments,
)
from mft_jax.config import ExperimentConfig, Grid, load_config, load_grid, validate
from mft_jax.errors import UserError
from mft_jax.parallel import hosts
from mft_jax.parallel.compilation_cache import keep_compiled_programs
from mft_jax.report.text import clean, literal
from mft_jax.startup import quick_imports


def run_command(options: Run, console: Console) -> None:
    validate(options.settings, "command line")
    grid = load_grid(options.config)
    with signals.raising(), hosts.joined(options.hosts):
        console.quiet = not hosts.is_first()
        if grid is None:
            run_one_command(options.settings, console)
        else:
            run_grid_command(grid.with_shared(options.settings), console)


def run_one_command(settings: ExperimentConfig, console: Console) -> None:
    with quick_imports():
        from mft_jax.bench.device import peak_of_run
        from mft_jax.experiment import run
        from mft_jax.report.outlook import describe_outlook
        from mft_jax.report.progress import TerminalReporter
        from mft_jax.report.table import render_results

    reporter = TerminalReporter(console)
    if hosts.count() == 1:  # reading the run directory and measuring would have to be done by all hosts together
        outlook, peak = lambda: describe_outlook(settings), lambda: peak_of_run(settings)
        reporter = TerminalReporter(console, outlook, peak)
    results = run(settings, reporter)
    title = f"{settings.task.name}, {results[0].n} held-out questions" if results else None
    console.print(render_results(results, title))
    console.print(literal(f"Everything is in {settings.run_dir}."), soft_wrap=True)


def run_grid_command(grid: Grid, console: Console) -> None:
    with quick_imports():
        from mft_jax.grid import run_grid
        from mft_jax.report.grid_table import render_grid
        from mft_jax.report.progress import TerminalReporter

    show = lambda status: console.print(render_grid(status), soft_wrap=True)
    status = run_grid(grid, TerminalReporter(console), show)
    show(status)
    console.print(literal(f"Everything is in {status.path}."), soft_wrap=True)
    failed = [cell.cell.name for cell in status.cells if cell.state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(status.cells)} cells failed ({', '.join(failed)}): correct what is named above, and "
            "run the same command again, which runs only these."
        )


def status_command(options: Status, console: Console) -> None:
    from mft_jax.report.status import render_status
    from mft_jax.runs.grid_directory import is_grid
    from mft_jax.runs.status import read_status

    if is_grid(options.run_dir):
        from mft_jax.report.grid_table import render_grid
        from mft_jax.runs.grid_status import read_grid_status

        console.print(render_grid(read_grid_status(options.run_dir)), soft_wrap=True)
        return
    console.print(render_status(read_status(options.run_dir)), soft_wrap=True)


def eval_command(options: Eval, console: Console) -> None:
    with quick_imports():
        from mft_jax.experiment import evaluate
        from mft_jax.report.progress import TerminalReporter
        from mft_jax.report.table import render_results
        from mft_jax.runs.directory import RunDirectory
        from mft_jax.runs.grid_directory import is_grid

    if is_grid(options.run_dir):
        evaluate_grid_command(options, console)
        return
    config = RunDirectory(options.run_dir).config()
    task = options.evaluated_task(config.task)
    validate(dataclasses.replace(config, task=task), "command line")
    with signals.raising():
        result = evaluate(
            options.run_dir, task, speakers=options.speakers, iteration=options.iteration, label=options.label,
            reporter=TerminalReporter(console),
        )  # fmt: skip
    console.print(render_results([result], f"{result.task}, {result.n} questions"))


def evaluate_grid_command(options: Eval, console: Console) -> None:
    """`mft eval` of a grid. Raises UserError at the end if a cell could not be evaluated."""
    from mft_jax.grid import evaluate_grid
    from mft_jax.report.grid_table import render_evaluations
    from mft_jax.report.progress import TerminalReporter

    with signals.raising():
        results, errors = evaluate_grid(
            options.run_dir, options.evaluated_task, speakers=options.speakers, iteration=options.iteration,
            label=options.label,
            reporter=TerminalReporter(console),
        )  # fmt: skip
    if results:
        console.print(render_evaluations(results))
    if errors:
        count = f"{len(errors)} of {len(results) + len(errors)} finished cells"
        raise UserError(f"{count} could not be evaluated: {', '.join(errors)}. The reasons are shown above.")


def ask_command(options: Ask, console: Console) -> None:
    source, question = options.asked()
    with quick_imports():
        from mft_jax.ask import open_panel
        from mft_jax.report.debate_view import debate_view, render_header, render_outcome

    if options.json:
        panel = open_panel(source, options.options)
        print(json.dumps(panel.describe() | panel.ask(question).to_dict()))
        return
    with console.status("loading the model") if console.is_terminal else contextlib.nullcontext():
        panel = open_panel(source, options.options)
    console.print(render_header(question, panel.describe()))
    with debate_view(console) as view:
        asked = panel.ask(question, view)
    console.print(render_outcome(asked.transcript, asked.agreeing, asked.cost))


def plots_command(options: Plots, console: Console) -> None:
    from mft_jax.report.plots import encode_plots
    from mft_jax.report.plotted_runs import PlottedRun, merge_runs
    from mft_jax.runs import layout
    from mft_jax.runs.outcomes import run_directories
    from mft_jax.runs.results import read_results
    from mft_jax.runs.store import Store

    if not options.run_dirs:
        raise UserError("mft plots needs results: give the directory of at least one run or grid.")
    runs = []
    for path in options.run_dirs:
        for directory, label in run_directories(path):
            if label and not directory.store.exists(layout.RESULTS):
                continue  # a cell without results yet
            runs.append(PlottedRun(label or path, directory.config(), read_results(directory.results_file)))
    files = encode_plots(merge_runs(runs))
    if not files:
        raise UserError(
            f"There is nothing to plot in {', '.join(options.run_dirs)}: no result has an accuracy and a ledger of its "
            "cost. If an older version made them, start `mft run` again, which rebuilds results.json."
        )
    out = Store(options.out)
    for name, content in files.items():
        out.write(name, content)
        console.print(literal(out.path(name)), soft_wrap=True)


def table_command(options: Table, console: Console) -> None:
    if not options.run_dirs:
        raise UserError("mft table needs results: give the directory of at least one run or grid.")
    from mft_jax.report.outcome_table import markdown_table
    from mft_jax.runs.outcomes import read_outcomes

    text = markdown_table(
        read_outcomes(options.run_dirs), against=options.against, answers=options.answers, last=options.last,
        equal_cost=options.equal_cost, diversity=options.diversity,
    )  # fmt: skip
    for line in text.splitlines():
        console.print(literal(line), soft_wrap=True)


def review_command(options: Review, console: Console) -> None:
    options.check()
    from mft_jax.report.review import render_question, render_review
    from mft_jax.runs.feedback import write_new_file
    from mft_jax.runs.review import Review as RunReview

    review, verdicts = RunReview(options.run_dir), []
    if options.add is not None:
        verdicts = review.from_file(options.add)
    elif options.simulate is not None:
        verdicts = review.simulated(options.simulate, options.order, options.seed)
        if options.out is not None:
            write_new_file(options.out, verdicts)
            console.print(literal(f"{len(verdicts)} simulated verdicts are in {options.out}."), soft_wrap=True)
            return
    elif options.question is not None and options.has_verdict:
        verdicts = review.verdicts_on(
            options.question, answer=options.answer, right=options.right, wrong=options.wrong, best=options.best,
            iteration=options.iteration, round=options.round,
        )  # fmt: skip
    else:
        shown = review.proposals() if options.question is None else [review.question(options.question)]
        if options.json:
            print(json.dumps([own.to_dict() for own in shown[: options.limit]], indent=2, ensure_ascii=False))
        else:
            view = render_review(review, options.limit) if options.question is None else render_question(shown[0])
            console.print(view, soft_wrap=True)
        return
    added = review.record(verdicts)
    new, them = ("1 new verdict is", "it") if added == 1 else (f"{added} new verdicts are", "them")
    console.print(literal(f"{new} in {review.file}; the next iteration uses {them}."), soft_wrap=True)


def report_command(options: Report, console: Console) -> None:
    if not options.run_dirs:
        raise UserError("mft report needs the directory of a run: give one or more.")
    if options.serve:
        serve_command(options, console)
        return
    from mft_jax.report.page import write_report

    for problem in write_report(options.run_dirs, options.out):
        console.print(literal(problem), soft_wrap=True)
    console.print(literal(f"The report is in {options.out}."), soft_wrap=True)


def serve_command(options: Report, console: Console) -> None:
    if len(options.run_dirs) > 1:
        raise UserError(f"mft report --serve shows one run or grid, got {len(options.run_dirs)}: give one directory.")
    from mft_jax.report.page.serve import ReportServer

    with ReportServer(options.run_dirs[0], options.port) as server:
        console.print(literal(f"The report is at {server.address} until Ctrl-C."), soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def export_command(options: Export, console: Console) -> None:
    from mft_jax.exchange import export

    with signals.raising():
        written = export(
            options.run_dir,
            options.out,
            to=options.to,
            iteration=options.iteration,
            agents=options.agents,
            max_shard_size=options.max_shard_size,
        )
    for path in written:
        console.print(literal(path), soft_wrap=True)


def import_command(options: ImportAdapters, console: Console) -> None:
    config = dataclasses.replace(
        load_config(options.config), run_dir=options.run_dir, model=options.model, debate=options.debate
    )
    validate(config, "command line")
    from mft_jax.exchange import import_adapters
    from mft_jax.methods import make_method

    with signals.raising():
        lora = import_adapters(config, options.adapters)
    count = len(make_method(config.method, config).adapters)
    next_command = shlex.join(["mft", "run", options.config, "--run-dir", options.run_dir])
    adapters = f"{count} adapters (rank {lora.rank}, alpha {lora.alpha:g})"
    console.print(literal(f"{adapters} are in {options.run_dir}: {next_command} starts from them."), soft_wrap=True)


def bench_command(options: Bench, console: Console) -> None:
    validate(options.settings, "command line")
    with quick_imports():
        from mft_jax.bench import run_bench
        from mft_jax.bench.measurement import read_report, write_report
        from mft_jax.bench.table import render_bench, render_measurement
        from mft_jax.plan.fit import choose_mesh

    before = read_report(options.compare) if options.compare else None  # before minutes of work
    say = lambda text: console.print(literal(f"measuring {text}"), soft_wrap=True)
    show = lambda found: console.print(render_measurement(found))
    with signals.raising():
        report = run_bench(choose_mesh(options.settings), repeats=options.repeats, say=say, show=show)
    if options.json:
        write_report(report, options.json)
    console.print(render_bench(report, before))


def plan_command(options: Plan, console: Console) -> None:
    topology = options.place()
    validate(options.settings, "command line")
    from mft_jax.plan.topology import prepare_environment

    prepare_environment(topology)  # before JAX is imported
    from mft_jax.plan.command import run_plan

    progress = Console(stderr=True)
    say = lambda text: progress.print(literal(f"compiling {text}"), soft_wrap=True)
    as_json, shown = run_plan(
        options.settings,
        topology,
        fit=options.fit,
        against=options.against,
        lengths_from=options.lengths_from,
        price=options.price,
        few_layers=options.layers,
        say=say,
    )
    if options.json:
        print(as_json)
    else:
        console.print(shown)


COMMANDS: dict[type, Callable[[Any, Console], None]] = {
    Run: run_command,
    ImportAdapters: import_command,
    Status: status_command,
    Eval: eval_command,
    Table: table_command,
    Ask: ask_command,
    Plots: plots_command,
    Review: review_command,
    Report: report_command,
    Export: export_command,
    Bench: bench_command,
    Plan: plan_command,
}


def main() -> None:
    """Runs the command in sys.argv. Raises SystemExit unless the exit code is 0."""
    arguments = sys.argv[1:]
    if not arguments:
        print(USAGE)
        sys.exit(2)
    if arguments == ["--version"]:
        print(f"mft {__version__}")
        return
    if not arguments[0].startswith("-") and arguments[0] not in NAMES:
        _fail(2, f"there is no command {arguments[0]!r}; the commands are {', '.join(NAMES)}.")
    try:
        _run_command(read_arguments(arguments))
    except UserError as error:
        _fail(1, str(error))
    except KeyboardInterrupt:
        _fail(130, "interrupted; run the same command again to continue.")
    except signals.Terminated:
        _fail(signals.START_AGAIN, "terminated; run the same command again to continue.")


def _run_command(command: Command) -> None:
    # Silences the log messages of these libraries. It must be set before they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_compiled_programs()
    _find_modules_of_user(command)
    COMMANDS[type(command)](command, Console())


def _find_modules_of_user(command: Command) -> None:
    """Lets methods of the user be imported from the folder of the configuration file and from the working directory.

    They come last, so that they do not hide other modules.
    """
    config = getattr(command, "config", None)
    folders = [os.path.dirname(os.path.abspath(config))] if isinstance(config, str) else []
    sys.path += [folder for folder in dict.fromkeys([*folders, os.getcwd()]) if folder not in sys.path]


def _fail(code: int, sentence: str) -> NoReturn:
    print(f"mft: {clean(sentence)}", file=sys.stderr)
    hosts.exit_process(code)
