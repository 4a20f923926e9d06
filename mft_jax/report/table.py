"""The table of results, which is printed at the end of a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from mft_jax.report.text import literal

if TYPE_CHECKING:  # importing this module takes seconds
    from mft_jax.runs.results import Result

NOT_MEASURED = "-"
_USUAL_NAME = 13  # characters; with longer method names, the padding is reduced to fit 80 columns


def results_table(results: "Sequence[Result]", title: str | None = None) -> Table:
    """A table with one row per result, in the given order. It has a task column only if there are several tasks.

    Accuracies are in percent with their standard error, seconds are wall time, and diversity is 1 - consensus. A
    caption counts the answers that were cut, the turns left unanswered, and the comparisons that ran out of time.
    """
    has_tasks = len({result.task for result in results}) > 1
    is_wide = has_tasks or any(len(result.method) > _USUAL_NAME for result in results)
    caption = _caption(results)
    table = Table(
        title=literal(title, "table.title") if title else None,
        caption=literal(caption, "table.caption") if caption else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 0) if is_wide else (0, 1),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    if has_tasks:
        table.add_column("task", no_wrap=True)
    for name in ("iter.", "accuracy\n%", "prompt\ntokens", "new\ntokens", "seconds", "diversity"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        names = [literal(name) for name in (result.method, *([result.task] if has_tasks else []))]
        table.add_row(*names, *_cells(result))
    return table


def short_count(count: float) -> str:
    """Formats a count in at most seven characters, so that a table fits a terminal: 812, 94.2 k, 1.11 M."""
    for size, unit in ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # otherwise 999,999 would be shown as 1e+03 k
            return f"{count / size:.3g} {unit}"
    return str(count)


def percent(share: float) -> str:
    """Formats a share in percent: 7.3 %, 81 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _cells(result: "Result") -> tuple[str, ...]:
    has_accuracy = result.accuracy is not None and result.stderr is not None
    return (
        str(result.iteration),
        f"{100 * result.accuracy:.1f} ± {100 * result.stderr:.1f}" if has_accuracy else NOT_MEASURED,
        short_count(result.prompt_tokens),
        short_count(result.new_tokens),
        f"{result.wall_seconds:,.1f}",
        NOT_MEASURED if result.diversity is None else f"{result.diversity['diversity']:.2f}",
    )


def _caption(results: "Sequence[Result]") -> str:
    """The numbers of answers that were cut, unanswered or not graded in all rows; empty if all are 0."""
    kinds = (
        ("cut", "answer was cut by a limit", "answers were cut by a limit"),
        ("unanswered", "turn had no room in the model's context", "turns had no room in the model's context"),
        ("grading_timeouts", "comparison of answers ran out of time", "comparisons of answers ran out of time"),
    )
    totals = [(sum(getattr(result, field) for result in results), *words) for field, *words in kinds]
    parts = [f"{total:,} {one if total == 1 else many}" for total, one, many in totals if total]
    return "; ".join(parts) + "." if parts else ""
