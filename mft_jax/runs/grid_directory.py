"""The directory of a grid: grid.json with its cells, and one run directory per cell.

grid.json is {"format", "cells": [{"name", "method", "model", "task", "override", "config", "error"}]}. It says which
runs belong to the grid, and why a cell failed that has no run directory yet. Everything else is in the runs.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.config import Cell, compare, from_dict, to_dict, with_earlier_settings
from mft_jax.errors import UserError
from mft_jax.parallel.hosts import decided, first_only
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.lock import LOCK_FILE
from mft_jax.runs.manifest import plain
from mft_jax.runs.store import DamagedFile, Store, to_path

GRID_FILE = "grid.json"
FORMAT = 1


def is_grid(path: str | pathlib.Path) -> bool:
    """Whether a grid was started in this directory."""
    return Store(to_path(path)).is_file(GRID_FILE)


class GridDirectory:
    """The directory of a grid. A process that works on the grid calls `take` first, and `release` at the end."""

    def __init__(self, path: str | pathlib.Path):
        self.path = to_path(path)
        self.store = Store(self.path)

    def run(self, cell: Cell) -> RunDirectory:
        """The run directory of a cell."""
        return RunDirectory(self.path / cell.name)

    @decided
    def take(self, cells: Sequence[Cell]) -> None:
        """Takes the directory for this process.

        Raises UserError if another process has it, if it contains something other than a grid, or if a cell has been
        started with settings that may not change. Nothing has changed then.
        """
        self._check_no_other_files()
        self.store.hold()
        try:
            for cell in cells:
                self._check_settings(cell)
        except BaseException:
            self.release()
            raise

    @first_only
    def release(self) -> None:
        """Releases the directory. If grid.json was not written, removes what `take` created."""
        self.store.release(discard=not is_grid(self.path))

    def write(self, cells: Sequence[Cell], errors: Mapping[str, str]) -> None:
        """Writes grid.json; `errors` maps the name of a cell to the error that stopped it."""
        listed = [
            dataclasses.asdict(cell) | {"config": to_dict(cell.config), "error": errors.get(cell.name)}
            for cell in cells
        ]
        content = json.dumps({"format": FORMAT, "cells": listed}, indent=2) + "\n"
        self.store.write(GRID_FILE, content.encode())

    def read(self) -> tuple[list[Cell], dict[str, str]]:
        """(cells, errors) as in `write`. Raises UserError if grid.json is missing or damaged."""
        source = self.store.path(GRID_FILE)
        try:
            raw = json.loads(self.store.read(GRID_FILE))
            if raw["format"] != FORMAT:
                raise UserError(
                    f"{source} was written by another version of mft_jax (format {raw['format']}, expected {FORMAT}): use "
                    "that version, or another --run-dir."
                )
            errors = {entry["name"]: entry["error"] for entry in raw["cells"] if entry["error"] is not None}
            return [self._parse_cell(entry) for entry in raw["cells"]], errors
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{source} is damaged ({type(error).__name__}: {str(error)[:100]}): start the grid again, which writes a "
                "new one."
            ) from error

    def started(self) -> list[Cell]:
        """The cells that have a run directory. Raises UserError if there is none, or if `read` does."""
        cells = [cell for cell in self.read()[0] if self.run(cell).exists]
        if not cells:
            raise UserError(
                f"{self.path} is a grid without a started cell: run `mft run` with its configuration first."
            )
        return cells

    def _parse_cell(self, entry: Mapping[str, Any]) -> Cell:
        labels = {field: str(entry[field]) for field in ("name", "method", "model", "task", "override")}
        config = from_dict(
            with_earlier_settings(entry["config"]), f"{self.store.path(GRID_FILE)}, cell {labels['name']}"
        )
        return Cell(**labels, config=dataclasses.replace(config, run_dir=str(self.path / labels["name"])))

    def _check_settings(self, cell: Cell) -> None:
        directory = self.run(cell)
        if not directory.exists:
            return
        try:
            stored = directory.config()
        except DamagedFile:
            return  # it is restored and compared when the cell is run
        for change in compare(stored, cell.config):
            if not change.allowed:
                raise UserError(
                    f"{directory.path} was run with {change.field} = {plain(change.stored)!r}, but the grid has "
                    f"{plain(change.given)!r}: give another --run-dir, or the earlier value."
                )

    def _check_no_other_files(self) -> None:
        if is_grid(self.path) or not self.store.exists(""):
            return
        if RunDirectory(self.path).exists:
            raise UserError(f"{self.path} is a run, expected a grid: give another --run-dir.")
        others = sorted(set(self.store.names()) - {LOCK_FILE})
        if others:
            raise UserError(
                f"{self.path} is not empty and not a grid (it holds {others[0]} but no {GRID_FILE}): give a new --run-dir."
            )
