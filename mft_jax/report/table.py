"""The table a run ends with."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from mft_jax.runs.results import Result


def results_table(results: Sequence[Result], title: str | None = None) -> Table:
    """A row per result, in the given order; a column for the task only when there are several.

    Accuracies are in percent with their standard error, seconds are on the clock, diversity is 1 - consensus.
    """
    has_tasks = len({result.task for result in results}) > 1
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("method", no_wrap=True)
    if has_tasks:
        table.add_column("task", no_wrap=True)
    for name in ("iter.", "accuracy\n%", "prompt\ntokens", "new\ntokens", "seconds", "diversity"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(result.method, *([result.task] if has_tasks else []), *_numbers(result))
    return table


def _numbers(result: Result) -> tuple[str, ...]:
    return (
        str(result.iteration),
        f"{100 * result.accuracy:.1f} ± {100 * result.stderr:.1f}",
        _short(result.prompt_tokens),
        _short(result.new_tokens),
        f"{result.wall_seconds:,.1f}",
        "-" if result.diversity is None else f"{result.diversity['diversity']:.2f}",
    )


def _short(count: int) -> str:
    """A count of tokens in at most seven characters, so that the table fits a terminal: 812, 94.2 k, 1.11 M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # else 999,999 would read 1e+03 k
            return f"{count / size:.3g} {unit}"
    return str(count)
