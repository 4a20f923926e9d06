"""Runs the cells of a grid that are not finished, one after the other, each in its own run directory.

Cells of the same model and mesh share one session, so weights are loaded and programs are compiled once. Debates with
equal inputs are computed once and copied. A cell that fails does not stop the others, except on several hosts.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from mft_jax.budget import check_baselines
from mft_jax.config import Cell, Grid, MeshConfig, ModelSource, Speakers, TaskConfig, compare
from mft_jax.errors import UserError
from mft_jax.experiment import evaluate, run
from mft_jax.methods import make_method
from mft_jax.parallel import hosts
from mft_jax.parallel.hosts import decide
from mft_jax.plan.fit import choose_mesh
from mft_jax.report.page import write_grid_report
from mft_jax.report.progress import Reporter, SilentReporter
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.grid_directory import GridDirectory
from mft_jax.runs.grid_status import GridStatus, grid_status
from mft_jax.runs.results import Result
from mft_jax.runs.store import DamagedFile
from mft_jax.runs.survey import find_damage
from mft_jax.session import Session, open_session
from mft_jax.tasks.load import check_name

T = TypeVar("T")


def run_grid(
    grid: Grid, reporter: Reporter | None = None, show: Callable[[GridStatus], None] = lambda status: None
) -> GridStatus:
    """Runs what is missing of a grid, in the directory `grid.shared.run_dir`, and returns its status.

    `show` is called with the status before the first cell is run. A cell that fails is reported; its state in the
    returned status is "failed". The same call runs it again. On several hosts, its error is raised instead. Raises
    UserError for a grid that cannot be run; nothing is written then.
    """
    reporter = reporter or SilentReporter()
    cells = decide(lambda: plan_cells(grid))
    cells = tuple(dataclasses.replace(cell, config=choose_mesh(cell.config)) for cell in cells)
    directory = GridDirectory(grid.shared.run_dir)
    directory.take(cells)
    try:
        errors: dict[str, str] = {}
        directory.write(cells, errors)
        left = [cell for cell in cells if not _is_done(directory.run(cell), cell)]
        show(grid_status(directory, cells, errors))
        sessions = _Sessions()
        for cell in left:
            reporter.say(f"Cell {cell.name}:")
            error = _run_cell(cell, cells, directory, reporter, sessions)
            if error is not None:
                errors[cell.name] = error
                reporter.say(f"The cell {cell.name} failed. {error}")
                directory.write(cells, errors)
        if left or not directory.store.exists(layout.REPORT):
            write_grid_report(directory, reporter.say)
        return grid_status(directory, cells, errors)
    finally:
        directory.release()


def evaluate_grid(
    path: str | pathlib.Path,
    task_of: Callable[[TaskConfig], TaskConfig],
    *,
    speakers: Speakers | None = None,
    iteration: int | None = None,
    label: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[list[tuple[Cell, Result]], dict[str, str]]:
    """Evaluates every finished cell of a grid on another task, or on other questions, as `experiment.evaluate` does.

    `task_of` makes the task to evaluate on from that of a cell; `speakers`, `iteration` and `label` are as in
    `evaluate`. Returns (the cells with their results, {name of a cell that failed: its error}). Cells that are not
    finished are left out, and reported. Raises UserError if the directory is no grid, or if none of its cells is
    finished. On several hosts, the error of a cell is raised.
    """
    reporter = reporter or SilentReporter()
    directory = GridDirectory(path)
    started = directory.started()
    cells = [cell for cell in started if _is_finished(directory.run(cell))]
    if not cells:
        raise UserError(f"{path} is a grid without a finished cell: `mft run` with its configuration finishes them.")
    if len(cells) < len(started):
        names = ", ".join(cell.name for cell in started if cell not in cells)
        reporter.say(f"These cells are not finished, and left out: {names}.")
    results, errors, sessions = [], {}, _Sessions()
    for cell in cells:
        reporter.say(f"Cell {cell.name}:")
        try:
            own = evaluate(
                directory.run(cell).path, task_of(cell.config.task), speakers=speakers, iteration=iteration,
                label=label, reporter=reporter, session=sessions.get(cell.config.model, cell.config.mesh),
            )  # fmt: skip
            results.append((cell, own))
        except Exception as error:  # whatever it is, the other cells can be evaluated
            if hosts.count() > 1:
                raise  # as in `_run_cell`
            errors[cell.name] = _describe(error)
            reporter.say(f"The cell {cell.name} failed. {errors[cell.name]}")
    return results, errors


def plan_cells(grid: Grid) -> tuple[Cell, ...]:
    """The cells of a grid, with complete configurations. Raises UserError for an unknown method, task or setting."""
    cells = []
    for cell in grid.cells():
        method = _check(grid, cell, make_method, cell.method, cell.config)
        _check(grid, cell, check_name, cell.config.task.name)
        if not method.lessons:  # an untuned method is evaluated as its own baseline
            cell = dataclasses.replace(cell, config=dataclasses.replace(cell.config, baselines=(cell.method,)))
        _check(grid, cell, check_baselines, cell.config)
        cells.append(cell)
    return tuple(cells)


def _check(grid: Grid, cell: Cell, function: Callable[..., T], *arguments: object) -> T:
    """Calls a function. A UserError that it raises names the cell too."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"{grid.source}, cell {cell.name}: {error}") from error


class _Sessions:
    """Holds the session of the last cell, so that the next one can use it."""

    def __init__(self) -> None:
        self._open: tuple[ModelSource, MeshConfig, Session] | None = None

    def get(self, model: ModelSource, mesh: MeshConfig) -> Session:
        """A session with this model and mesh. Another one that was open is dropped first, which frees its weights."""
        if self._open is None or self._open[:2] != (model, mesh):
            self._open = None
            self._open = model, mesh, open_session(model, mesh)
        return self._open[2]


def _is_finished(directory: RunDirectory) -> bool:
    try:
        return directory.is_finished
    except DamagedFile:
        return False


def _is_done(directory: RunDirectory, cell: Cell) -> bool:
    """Whether the run of a cell is finished with these settings, and none of its files is damaged."""
    try:
        if not directory.is_finished or compare(directory.config(), cell.config):
            return False
    except DamagedFile:
        return False  # the run repairs it
    return not find_damage(directory.store, cell.config, make_method(cell.method, cell.config).adapters)


def _run_cell(
    cell: Cell, cells: Sequence[Cell], directory: GridDirectory, reporter: Reporter, sessions: _Sessions
) -> str | None:
    """Runs a cell, or the rest of it. Returns the error that stopped it; None if it is finished."""
    siblings = [directory.run(other).path for other in cells if other is not cell]
    try:
        run(cell.config, reporter, sessions.get(cell.config.model, cell.config.mesh), siblings)
    except Exception as error:  # whatever it is, the other cells can be run; run.json of the cell names it too
        if hosts.count() > 1:
            raise  # it may be an error of this host only: the others would still be in this cell
        return _describe(error)
    return None


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
