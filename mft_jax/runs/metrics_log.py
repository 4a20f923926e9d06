"""metrics.jsonl: the scalars of a run with their step and time, one JSON object per line."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mft_jax.runs.layout import METRICS
from mft_jax.runs.store import Store


class Follower(Protocol):
    """Is told what happens to the records of a finetuning; see `mft_jax.tracking.Tracker`."""

    def begin(self, iteration: int, records: Sequence[Mapping[str, Any]]) -> None: ...

    def log(self, record: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...


class MetricsLogger:
    """Collects records {"time", "iteration", "stage", "step", name: value, ...}. `flush` rewrites the whole file.

    If the process is killed, the records since the last `flush` are lost. The resumed stage logs them again.
    """

    def __init__(self, store: Store, say: Callable[[str], None] = lambda text: None, follower: Follower | None = None):
        """Reads the records. A damaged file is moved to damaged/, its intact lines are kept, and `say` reports it."""
        self.store, self.follower = store, follower
        data = store.read_if_exists(METRICS) or b""
        lines = data.removesuffix(b"\n").split(b"\n") if data else []
        parsed = [_parse(line) for line in lines]
        self._records = [record for record in parsed if record is not None]
        if None in parsed:
            aside = store.path(store.set_aside(METRICS))
            say(
                f"{store.path(METRICS)} is damaged (line {parsed.index(None) + 1} is not a metrics record): it was "
                f"moved to {aside}, and its other lines are kept."
            )
            self.flush()

    def log(self, iteration: int, stage: str, step: int, **scalars: float) -> None:
        """Adds one record. NaN and infinities become null, because JSON does not have them."""
        values = {name: _plain(value) for name, value in scalars.items()}
        self._records.append({"time": time.time(), "iteration": iteration, "stage": stage, "step": step, **values})
        if self.follower is not None:
            self.follower.log(self._records[-1])

    def rewind(self, iteration: int, stage: str, step: int) -> None:
        """Removes the records of a stage from `step` on. The resumed run logs them again, so no step appears twice."""
        of_stage = lambda record: (record["iteration"], record["stage"]) == (iteration, stage)
        self._records = [record for record in self._records if not of_stage(record) or record["step"] < step]
        if self.follower is not None:
            self.follower.begin(iteration, sorted(self._records, key=_iteration_of))

    def flush(self) -> None:
        """Writes all records durably, sorted by iteration, because an earlier iteration may have been repeated.

        Raises UserError if they cannot be written.
        """
        self._records.sort(key=_iteration_of)
        self.store.write(METRICS, "".join(json.dumps(record) + "\n" for record in self._records).encode())
        if self.follower is not None:
            self.follower.flush()

    def records(self) -> list[dict[str, Any]]:
        """All records, in order."""
        return list(self._records)


def _iteration_of(record: Mapping[str, Any]) -> int:
    return record["iteration"]


def _plain(value: float) -> int | float | None:
    """A Python, NumPy or JAX scalar as a Python number; None if it is not finite."""
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        is_record = all(isinstance(record[name], int) for name in ("iteration", "step")) and "stage" in record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if is_record else None
