"""Writes the report of one or several runs."""

import collections
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from mft_jax import __version__
from mft_jax.errors import UserError
from mft_jax.parallel.hosts import first_only
from mft_jax.report.page.debates import Debates
from mft_jax.report.page.document import MAX_BYTES, PART, Document, make_document
from mft_jax.report.page.judge import FLAGS
from mft_jax.report.page.run_page import read_run
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.environment import now
from mft_jax.runs.grid_directory import GridDirectory, is_grid
from mft_jax.runs.store import Store, to_path


def write_report(
    run_dirs: Sequence[str | pathlib.Path], out: str | pathlib.Path, *, max_bytes: int = MAX_BYTES
) -> list[str]:
    """Writes the report of these runs to the HTML file `out`; debates beyond `max_bytes` to the folder beside it.

    Runs may be unfinished. The directory of a grid stands for the runs of all its cells. Returns a sentence for each thing
    that the report could not show. Raises UserError if a directory is no run and no grid, or if the report cannot be
    written; an old report then stays.
    """
    out = to_path(out)
    if out.suffix != ".html":
        raise UserError(f"{out} is not the name of an HTML file: give one that ends in .html.")
    return _write(Store(out.parent), out.name, run_dirs, max_bytes)


@first_only
def write_own_report(directory: RunDirectory, say: Callable[[str], None]) -> None:
    """Writes report.html of a run into its own directory. Never raises an error, because the run itself is complete."""
    _write_beside(directory.store, say)


@first_only
def write_grid_report(directory: GridDirectory, say: Callable[[str], None]) -> None:
    """Writes report.html of a grid, with its started cells side by side, into its directory. Never raises an error."""
    try:
        has_runs = any(directory.run(cell).exists for cell in directory.read()[0])
    except UserError as error:
        return say(f"The report of {directory.store.root} could not be written: {error}")
    if has_runs:
        _write_beside(directory.store, say)


def _write_beside(store: Store, say: Callable[[str], None]) -> None:
    try:
        _write(store, layout.REPORT, [store.root], MAX_BYTES)
    except Exception as error:
        say(
            f"The report {store.path(layout.REPORT)} could not be written ({error}): `mft report` makes it from the files "
            "of the run."
        )


def _write(store: Store, name: str, run_dirs: Sequence[str | pathlib.Path], max_bytes: int) -> list[str]:
    folder = f"{name.removesuffix('.html')}_debates"
    document, problems = make_report(run_dirs, folder, max_bytes=max_bytes)
    _replace(store, name, folder, document)
    return problems


def make_report(
    run_dirs: Sequence[str | pathlib.Path], folder: str, *, max_bytes: int = MAX_BYTES, served: bool = False
) -> tuple[Document, list[str]]:
    """(the report of these runs, a sentence for each thing that it could not show).

    `folder` holds the debates beyond `max_bytes`. `served`: the page sends verdicts to the server that it comes from.
    """
    debates = Debates()
    directories, problems = runs_in(run_dirs)
    runs = [read_run(path, name, debates) for path, name in directories]
    _distinguish(runs)
    index = {"flags": FLAGS, "questions": debates.questions, "stages": [run.pop("stages") for run in runs]}
    summary = {"version": __version__, "made": now(), "runs": runs, "served": served}
    title = "mft report: " + ", ".join(run["name"] for run in runs)
    document = make_document(title, summary, index, debates.chunks, folder, max_bytes=max_bytes, served=served)
    return document, problems + [problem for run in runs for problem in run["problems"]]


def runs_in(paths: Sequence[str | pathlib.Path]) -> tuple[list[tuple[str | pathlib.Path, str]], list[str]]:
    """[(directory of a run, its name or that of its cell)], and a sentence for each cell of a grid without a run.

    Raises UserError for a grid of which no cell has been started.
    """
    found: list[tuple[str | pathlib.Path, str]] = []
    problems = []
    for path in paths:
        if not is_grid(path):
            found.append((path, RunDirectory(path).path.resolve().name))
            continue
        grid = GridDirectory(path)
        started = grid.started()
        found += [(grid.run(cell).path, cell.name) for cell in started]
        left = [cell.name for cell in grid.read()[0] if cell not in started]
        problems += [f"The cell {name} of {path} is not in the report: it has not been started." for name in left]
    return found, problems


def _replace(store: Store, name: str, folder: str, document: Document) -> None:
    """Writes the parts, then the page, then removes old parts. Parts are named by their content.

    Thus the page on disk always has its parts, even if the process is killed in between.
    """
    for part, data in document.parts.items():
        store.write(f"{folder}/{part}", data)
    store.write(name, document.page)
    for old in store.names(folder):
        part = old.rsplit("/", 1)[-1]
        if PART.fullmatch(part) and part not in document.parts:
            store.delete(old)
    if store.exists(folder) and not store.names(folder):
        store.delete(folder)


def _distinguish(runs: Sequence[dict[str, Any]]) -> None:
    """Gives runs of the same name the names "NAME (1)", "NAME (2)", ..."""
    counts = collections.Counter(run["name"] for run in runs)
    numbers: collections.Counter[str] = collections.Counter()
    for run in runs:
        if counts[run["name"]] > 1:
            numbers[run["name"]] += 1
            run["name"] = f"{run['name']} ({numbers[run['name']]})"
