"""The status of a run: what is done, what is left, and the cost. It can be read while the run is working."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mft_jax.errors import UserError
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import Result, read_results
from mft_jax.runs.survey import StageStatus, list_stages

__all__ = ["StageStatus", "Status", "read_status"]


@dataclasses.dataclass(frozen=True)
class Status:
    """The status of a run, according to its files."""

    path: str
    state: str  # running, interrupted, failed or finished
    error: str | None  # why it stopped
    started: str | None  # ISO 8601, UTC
    finished: str | None
    results: list[Result]
    stages: tuple[StageStatus, ...]  # in the order in which the run works on them
    problems: tuple[str, ...] = ()  # one sentence per damaged file, with the remedy


def read_status(run_dir: str | pathlib.Path) -> Status:
    """The status of a run. Raises UserError if there is no run."""
    directory, problems = RunDirectory(run_dir), []
    stages = list_stages(directory.store, directory.config())
    problems += [stage.damage for stage in stages if stage.damage]
    manifest = _read_manifest(directory, problems.append)
    state = _current_state(manifest["status"], directory.store.is_held())
    if state == "finished":  # stages without any files are not part of this run's method
        stages = [stage for stage in stages if stage.done or stage.is_done or stage.damage]
    return Status(
        path=str(directory.path),
        state=state,
        error=manifest["error"],
        started=manifest["created"],
        finished=manifest["finished"],
        results=_read_results(directory, problems.append),
        stages=tuple(stages),
        problems=tuple(problems),
    )


def _current_state(status: str, is_held: bool) -> str:
    if status == "finished":
        return status
    if is_held:
        return "running"
    return "interrupted" if status == "running" else status  # it was killed before it could record that


def _read_manifest(directory: RunDirectory, say: Callable[[str], None]) -> Mapping[str, Any]:
    unknown = {"status": "running", "error": None, "created": None, "finished": None}
    try:
        return unknown | directory.manifest()
    except UserError as error:
        say(str(error))
        return unknown


def _read_results(directory: RunDirectory, say: Callable[[str], None]) -> list[Result]:
    try:
        return read_results(directory.results_file) if directory.store.exists(layout.RESULTS) else []
    except UserError as error:
        say(str(error))
        return []
