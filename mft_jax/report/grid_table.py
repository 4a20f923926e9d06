"""The output of a grid: what is done and what is left, and the table of all cells."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mft_jax.report.table import NOT_MEASURED, short_count
from mft_jax.report.text import literal

if TYPE_CHECKING:  # importing this module takes seconds
    from mft_jax.config import Cell
    from mft_jax.runs.grid_status import CellStatus, GridStatus
    from mft_jax.runs.results import Result


def render_grid(status: "GridStatus") -> RenderableType:
    """The state of the grid, a table of all cells with their last results, means over seeds, and why cells failed."""
    failed = [cell for cell in status.cells if cell.state == "failed"]
    reasons = [literal(f"{cell.cell.name} failed: {cell.error}") for cell in failed]
    means = _means_over_seeds(status)
    tables = [_cells_table(status), *([_means_table(means)] if means else [])]
    return Group(_headline(status), *tables, *reasons)


def _headline(status: "GridStatus") -> Text:
    cells = status.cells
    done = sum(cell.state == "finished" for cell in cells)
    failed = sum(cell.state == "failed" for cell in cells)
    parts = [f"{status.path}: {done} of {len(cells)} cells are done"]
    parts += [f"{failed} failed"] if failed else []
    if done < len(cells):
        parts.append(f"time left: {time_left(status.seconds_left, status.is_whole)}")
    return literal("; ".join(parts) + ".")


def time_left(seconds: float | None, is_whole: bool) -> str:
    """An estimate in words, such as "about 2 h 10 min"; "unknown" for None. `is_whole`: it covers all kinds of stages."""
    if seconds is None:
        return "unknown"
    minutes = max(1, round(seconds / 60))
    span = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{'about' if is_whole else 'more than'} {span}"


def _cells_table(status: "GridStatus") -> Table:
    """One row per cell. The footer has the cost of the grid, in which shared stages count once."""
    cost = status.cost
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 0))
    table.add_column("cell", footer="all, shared stages once", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name, sum_ in (
        ("iter.", ""),
        ("accuracy\n%", ""),
        ("new\ntokens", short_count(cost.new_tokens)),
        ("seconds", f"{cost.wall_seconds:,.1f}"),
    ):
        table.add_column(name, footer=sum_, justify="right", no_wrap=True)
    for cell in status.cells:
        table.add_row(literal(cell.cell.name), literal(_state(cell)), *_result_cells(cell))
    return table


def _state(cell: "CellStatus") -> str:
    if cell.state == "finished":
        return "done"
    done = sum(stage.is_done for stage in cell.stages)
    return f"{cell.state} {done}/{len(cell.stages)}" if cell.stages else cell.state


def _means_over_seeds(status: "GridStatus") -> dict[str, list[float]]:
    """{setting: accuracies of its last iteration} of the settings that are finished with several seeds."""
    found: dict[str, list[float]] = {}
    for cell in status.cells:
        last = _last_result(cell)
        if cell.state == "finished" and last is not None and last.accuracy is not None:
            found.setdefault(cell.cell.setting, []).append(last.accuracy)
    return {setting: accuracies for setting, accuracies in found.items() if len(accuracies) > 1}


def _means_table(means: dict[str, list[float]]) -> Table:
    caption = (
        "±: standard error of the mean, from the differences between seeds (mft table: from the number of questions)."
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), caption=caption, caption_justify="left")
    table.add_column("mean over seeds", overflow="fold")
    table.add_column("seeds", justify="right")
    table.add_column("accuracy\n%", justify="right", no_wrap=True)
    for setting, accuracies in means.items():
        error = statistics.stdev(accuracies) / len(accuracies) ** 0.5  # standard error of the mean over seeds
        mean = f"{100 * statistics.mean(accuracies):.1f} ± {100 * error:.1f}"
        table.add_row(literal(setting), str(len(accuracies)), mean)
    return table


def render_evaluations(results: "Sequence[tuple[Cell, Result]]") -> RenderableType:
    """One row per cell: its accuracy on the task that it was evaluated on, and what the evaluation cost."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0))
    table.add_column("cell", overflow="fold")
    table.add_column("task", overflow="fold")
    for name in ("iter.", "accuracy\n%", "new\ntokens", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell, own in results:
        table.add_row(literal(cell.name), literal(own.task), *_result_row(own, own.new_tokens, own.wall_seconds))
    return table


def _last_result(status: "CellStatus") -> "Result | None":
    """The result of the cell's method after its last iteration; None if there is none yet."""
    config = status.cell.config
    own = [r for r in status.results if (r.method, r.task) == (status.cell.method, config.task.name)]
    return max(own, key=lambda result: result.iteration, default=None)


def _result_cells(status: "CellStatus") -> tuple[str, ...]:
    """The last iteration of the cell's method and its accuracy, and the cost of all its iterations."""
    last = _last_result(status)
    if last is None:
        return (NOT_MEASURED,) * 4
    own = [result for result in status.results if (result.method, result.task) == (last.method, last.task)]
    return _result_row(
        last, sum(result.new_tokens for result in own), sum(result.wall_seconds for result in own)
    )  # fmt: skip


def _result_row(result: "Result", new_tokens: int, seconds: float) -> tuple[str, ...]:
    accuracy = NOT_MEASURED
    if result.accuracy is not None and result.stderr is not None:
        accuracy = f"{100 * result.accuracy:.1f} ± {100 * result.stderr:.1f}"
    return str(result.iteration), accuracy, short_count(new_tokens), f"{seconds:,.1f}"
