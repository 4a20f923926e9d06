"""`mft plan --against RUN_DIR`: how far the estimate of a plan is from what a run took."""

import dataclasses
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from mft_jax.errors import UserError
from mft_jax.plan.plan import Plan
from mft_jax.report.table import NOT_MEASURED, short_count
from mft_jax.report.text import literal
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.survey import list_stages


@dataclasses.dataclass(frozen=True)
class Difference:
    """A finished stage of a run. Each pair is (estimated, real)."""

    stage: str
    tokens: tuple[float, int]  # sampled, or in finetuning trained on
    seconds: tuple[float, float]  # in compiled programs


def compare(plan: Plan, directory: RunDirectory) -> list[Difference]:
    """Compares the estimate with the finished stages of a run, whose configuration the plan has.

    Raises UserError if no stage is finished.
    """
    mesh, found = plan.config.mesh, []
    devices = mesh.agent * mesh.data * mesh.model
    done = {stage.name: stage for stage in list_stages(directory.store, directory.config()) if stage.is_done}
    for own in plan.stages:
        if own.name in done:
            cost = done[own.name].cost
            tokens = (own.new_tokens + own.train_tokens, cost.new_tokens + cost.train_tokens)
            found.append(Difference(own.name, tokens, (own.seconds, cost.device_seconds / devices)))
    if not found:
        raise UserError(f"{directory.path} has no finished stage to compare with: let `mft run` finish one first.")
    return found


def as_dict(own: Difference) -> dict[str, Any]:
    """The difference as plain values."""
    return {
        "stage": own.stage,
        "tokens": {"estimated": own.tokens[0], "real": own.tokens[1]},
        "seconds": {"estimated": own.seconds[0], "real": own.seconds[1]},
    }


def summary(differences: list[Difference]) -> str:
    """How far the sums are off, in a sentence."""
    guessed, real = (sum(own.seconds[part] for own in differences) for part in (0, 1))
    return f"All together: {guessed:.3g} s were estimated, it took {real:.3g} s: {_ratio(guessed, real)} times as long."


def render_differences(differences: list[Difference]) -> RenderableType:
    """A table with a row for each stage."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for name in ("tokens\nestimated", "\nreal", "seconds\nestimated", "\nreal", "real to\nestimate"):
        table.add_column(name, justify="right", no_wrap=True)
    for own in differences:
        (guess, real), (before, after) = own.tokens, own.seconds
        cells = [short_count(round(guess)), short_count(real), f"{before:.3g}", f"{after:.3g}", _ratio(before, after)]
        table.add_row(literal(own.stage), *cells)
    return Group(table, literal(summary(differences)))


def _ratio(estimate: float, real: float) -> str:
    return f"{real / estimate:.2f}" if estimate else NOT_MEASURED
