"""The output of `mft status`: the finished and remaining stages of a run, and their cost."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mft_jax.metrics.ledger import Cost, total
from mft_jax.report.table import render_results, short_count
from mft_jax.report.text import literal

if TYPE_CHECKING:  # importing this module takes seconds
    from mft_jax.runs.status import StageStatus, Status


def render_status(status: "Status") -> RenderableType:
    """The state of the run, its damaged files, a table of the stages with their cost, and the results so far."""
    parts: list[RenderableType] = [_headline(status)]
    if status.stages:
        parts.append(_stages_table(status))
    if status.results:
        parts.append(render_results(status.results, title="results so far" if _remaining(status) else "results"))
    return Group(*parts)


def _headline(status: "Status") -> Text:
    times = [f"started {status.started}"] if status.started else []
    times += [f"finished {status.finished}"] if status.finished else []
    lines = [f"{status.path}: {', '.join([status.state, *times])}"]
    if status.error:
        lines.append(f"It stopped with: {status.error}")
    if status.stages:
        left = _remaining(status)
        lines.append(f"{len(status.stages) - len(left)} of {len(status.stages)} stages are done.")
        if left and status.state in ("interrupted", "failed"):
            lines[-1] += " The same `mft run` command resumes the run."
    return Text("\n").join(literal(line) for line in (*lines, *status.problems))


def _remaining(status: "Status") -> "list[StageStatus]":
    return [stage for stage in status.stages if not stage.is_done]


def _stages_table(status: "Status") -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=0)  # to fit 80 columns
    table.add_column("stage", footer="all", no_wrap=True)
    table.add_column("done", justify="right")
    headings = ("prompt\ntokens", "new\ntokens", "trained\ntokens", "FLOPs", "seconds")
    for heading, sum_ in zip(headings, _cost_cells(total(stage.cost for stage in status.stages)), strict=True):
        table.add_column(heading, footer=sum_, justify="right")
    for stage in status.stages:
        whole = "?" if stage.total is None else f"{stage.total:,}"
        done = f"{stage.done:,}/{whole} {stage.unit}"
        table.add_row(literal(stage.name), literal(done), *_cost_cells(stage.cost))
    return table


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    counts = (cost.prompt_tokens, cost.new_tokens, cost.train_tokens, cost.flops)
    return (*map(short_count, counts), f"{cost.wall_seconds:,.1f}")
