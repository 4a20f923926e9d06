"""metrics.jsonl: every scalar of a run, with its step and time, one JSON object a line."""

import json
import math
import pathlib
import time
from typing import Any

import numpy as np

from mft_jax.errors import UserError
from mft_jax.files import atomic_write, make_directory


class MetricsLogger:
    """Appends {"time", "iteration", "stage", "step", name: value, ...}; a kill costs at most a torn last line."""

    def __init__(self, path: pathlib.Path):
        """Opens or creates `path`; a torn last line is dropped. Raises UserError for a line that is no JSON object."""
        self.path = pathlib.Path(path)
        make_directory(self.path.parent)
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            atomic_write(self.path, data[:whole].decode())
        self.records()

    def log(self, iteration: int, stage: str, step: int, **scalars: float) -> None:
        """Writes one line at once. NaN and infinities, which JSON has not, become null."""
        values = {name: _plain(value) for name, value in scalars.items()}
        record = {"time": time.time(), "iteration": iteration, "stage": stage, "step": step, **values}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, iteration: int, stage: str, step: int) -> None:
        """Drops the lines of a stage from `step` on, which a resumed run writes again: no step appears twice."""
        kept = [r for r in self.records() if (r["iteration"], r["stage"]) != (iteration, stage) or r["step"] < step]
        atomic_write(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def records(self) -> list[dict[str, Any]]:
        """All lines, in the order they were written."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [_parse(line, self.path, number) for number, line in enumerate(lines, start=1)]


def _plain(value: float) -> int | float | None:
    """A Python number from a Python, NumPy or JAX scalar."""
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


def _parse(line: str, path: pathlib.Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        record["iteration"], record["stage"], record["step"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} line {number} is not a metrics record ({error}): delete that line, or the file; resuming does not "
            "need it."
        ) from error
    return record
