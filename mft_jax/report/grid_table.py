"""The output of a grid: what is done and what is left, and the table of all cells."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mft_jax.report.table import NOT_MEASURED, short_count
from mft_jax.report.text import literal

if TYPE_CHECKING:  # importing this module takes seconds
    from mft_jax.runs.grid_status import CellStatus, GridStatus


def render_grid(status: "GridStatus") -> RenderableType:
    """The state of the grid, a table of all cells with their last results, and why cells failed."""
    failed = [cell for cell in status.cells if cell.state == "failed"]
    reasons = [literal(f"{cell.cell.name} failed: {cell.error}") for cell in failed]
    return Group(_headline(status), _cells_table(status), *reasons)


def _headline(status: "GridStatus") -> Text:
    cells = status.cells
    done = sum(cell.state == "finished" for cell in cells)
    failed = sum(cell.state == "failed" for cell in cells)
    parts = [f"{status.path}: {done} of {len(cells)} cells are done"]
    parts += [f"{failed} failed"] if failed else []
    if done < len(cells):
        parts.append(f"time left: {time_left(status)}")
    return literal("; ".join(parts) + ".")


def time_left(status: "GridStatus") -> str:
    """The estimate in words, such as "about 2 h 10 min"; "unknown" before any stage is finished."""
    if status.seconds_left is None:
        return "unknown"
    minutes = max(1, round(status.seconds_left / 60))
    span = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{'about' if status.is_whole else 'more than'} {span}"


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


def _result_cells(status: "CellStatus") -> tuple[str, ...]:
    """The last iteration of the cell's method and its accuracy, and the cost of all its iterations."""
    results = [result for result in status.results if result.method == status.cell.method]
    results = [result for result in results if result.task == results[0].task]  # without evaluations on other tasks
    if not results:
        return (NOT_MEASURED,) * 4
    last = max(results, key=lambda result: result.iteration)
    has_accuracy = last.accuracy is not None and last.stderr is not None
    return (
        str(last.iteration),
        f"{100 * last.accuracy:.1f} ± {100 * last.stderr:.1f}" if has_accuracy else NOT_MEASURED,
        short_count(sum(result.new_tokens for result in results)),
        f"{sum(result.wall_seconds for result in results):,.1f}",
    )
