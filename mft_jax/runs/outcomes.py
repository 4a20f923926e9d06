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

    Cells and runs without results yet are left out. If several single runs are given, the directory is their label.
    Raises UserError if there are no results at all.
    """
    runs = [(run, label, path) for path in paths for run, label in run_directories(path)]
    names_runs = sum(not is_grid(path) for path in paths) > 1
    seeds = {run.path: run.config().seed for run, _, _ in runs}
    if names_runs and len({seeds[run.path] for run, _, _ in runs}) == len(runs):
        names_runs = False  # repetitions with different seeds
    found: list[Outcome] = []
    for run, label, path in runs:
        label = label or (str(path) if names_runs and not is_grid(path) else "")
        if run.store.exists(layout.RESULTS):
            found += _read_run(run, label, seeds[run.path])
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
    """The outcomes without repetitions of methods that are not finetuned.

    Cells of one seed often have the same baselines. One with the same answers and cost in every label loses its label.
    """
    kept: dict[tuple, Outcome] = {}
    for own in outcomes:
        result, key = own.result, (own.result.task, own.result.method, own.result.iteration, own.seed)
        if result.iteration:
            kept[*key, own.label] = own
            continue
        same = next((one for (*start, _), one in kept.items() if tuple(start) == key and _equal(one, own)), None)
        if same is None:
            kept[*key, own.label] = own
        elif same.label != own.label:
            place = next(place for place, one in kept.items() if one is same)
            kept[place] = dataclasses.replace(same, label="")
    return list(kept.values())


def _equal(one: Outcome, other: Outcome) -> bool:
    return one.correct == other.correct and one.result.new_tokens == other.result.new_tokens
