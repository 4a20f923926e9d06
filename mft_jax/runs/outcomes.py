"""The outcomes of several runs and grids, question by question, so that methods of different runs can be compared."""

import dataclasses
import pathlib
from collections.abc import Sequence

from mft_jax.errors import UserError
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.grid_directory import GridDirectory, is_grid
from mft_jax.runs.results import Result, read_results
from mft_jax.runs.stage_file import read_stage
from mft_jax.runs.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one method after one iteration of one run."""

    label: str  # what else tells the runs apart: their grid's models, tasks and overrides, or their directories
    seed: int
    result: Result
    correct: dict[str, bool | None]  # by the id of the question; None if the right answer is not known


def run_directories(path: str | pathlib.Path) -> list[tuple[RunDirectory, str]]:
    """The runs in a directory with their labels: the started cells of a grid, or the run itself with the label "".

    The label of a cell has its model, task and override. Raises UserError if the directory is neither a run nor a grid,
    or if a grid has no cell that was started.
    """
    if not is_grid(path):
        return [(RunDirectory(path), "")]
    grid = GridDirectory(path)
    label = lambda cell: ", ".join(part for part in (cell.model, cell.task, cell.override) if part)
    return [(grid.run(cell), label(cell)) for cell in grid.started()]


def read_outcomes(paths: Sequence[str | pathlib.Path]) -> list[Outcome]:
    """All outcomes in the runs and grids, in their order. Outcomes that several cells of a seed share are given once.

    Cells and runs without results yet are left out. If several directories are given that are not just repetitions with
    other seeds, the directory is a part of the label. Raises UserError if there are no results at all.
    """
    runs = [(run, label, path) for path in paths for run, label in run_directories(path)]
    seeds = [run.config().seed for run, _, _ in runs]
    names_paths = len(paths) > 1 and len(set(seeds)) < len(seeds)
    found: list[Outcome] = []
    for (run, label, path), seed in zip(runs, seeds, strict=True):
        parts = [str(path)] * names_paths + [label] * bool(label)
        if run.store.exists(layout.RESULTS):
            found += _read_run(run, ", ".join(parts), seed)
    if not found:
        raise UserError(f"There are no results in {', '.join(map(str, paths))}: `mft run` makes them.")
    return _without_copies(found)


def _read_run(run: RunDirectory, label: str, seed: int) -> list[Outcome]:
    trained = run.config().task.name
    outcomes = []
    for result in read_results(run.results_file):
        store = run.store if result.task == trained else Store(run.path / layout.EVALUATIONS / result.task)
        lines, _, _ = read_stage(store, layout.evaluation(result.method, result.iteration))
        correct = {line["id"]: line["correct"] for line in lines}
        outcomes.append(Outcome(label=label, seed=seed, result=result, correct=correct))
    return outcomes


def _without_copies(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes without copies. If copies have different labels, such as a baseline in several cells, the label is ""."""
    kept: list[Outcome] = []
    for own in outcomes:
        place = next((n for n, one in enumerate(kept) if _is_copy(one, own)), None)
        if place is None:
            kept.append(own)
        elif kept[place].label != own.label:
            kept[place] = dataclasses.replace(kept[place], label="")
    return kept


def _is_copy(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same computation: of one seed, with the same answers and cost.

    Finetuned agents of different labels are never copies, even if they happen to answer alike.
    """
    identity = lambda own: (own.result.task, own.result.method, own.result.iteration, own.seed, own.result.new_tokens)
    if identity(one) != identity(other) or (other.result.iteration and one.label != other.label):
        return False
    return one.correct == other.correct
