"""The interface of a tracker, and several of them as one whose errors do not end the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mft_jax.runs.results import Result

Record = Mapping[str, Any]  # as in metrics.jsonl: {"time", "iteration", "stage", "step", name: value, ...}


class Tracker(Protocol):
    """A program that shows the metrics of a run."""

    name: str

    def begin(self, iteration: int, records: Sequence[Record]) -> None:
        """A finetuning starts, or goes on after a stop. `records` are those of metrics.jsonl that stay valid."""

    def log(self, record: Record) -> None:
        """One optimizer step is done."""

    def flush(self) -> None:
        """Makes durable what was logged. Steps before a `flush` are not repeated, unless a file of the run is damaged."""

    def results(self, results: Sequence[Result]) -> None:
        """The results of the run so far, after an evaluation."""

    def close(self) -> None:
        """The run ends or stops."""


class Trackers:
    """Several trackers. One that fails is left out from then on, and `say` reports it: the run itself goes on."""

    def __init__(self, trackers: Sequence[Tracker] = (), say: Callable[[str], None] = lambda text: None):
        self._trackers, self._say = list(trackers), say

    def begin(self, iteration: int, records: Sequence[Record]) -> None:
        self._each(lambda tracker: tracker.begin(iteration, records))

    def log(self, record: Record) -> None:
        self._each(lambda tracker: tracker.log(record))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def results(self, results: Sequence[Result]) -> None:
        self._each(lambda tracker: tracker.results(results))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # a full disk, a lost network, a fault of the package: none concerns the run
                self._trackers.remove(tracker)
                self._say(
                    f"{tracker.name} gets no more metrics of this run ({type(error).__name__}: {str(error)[:200]}); "
                    "metrics.jsonl has all of them."
                )


def scalars_of(record: Record) -> dict[str, float]:
    """The finite scalars of a record."""
    names = ("time", "iteration", "stage", "step")
    return {name: value for name, value in record.items() if name not in names and value is not None}


def scalars_of_result(result: Result) -> dict[str, float]:
    """What is shown of a result: accuracy, diversity, and cumulative FLOPs and tokens, as far as they are known."""
    spent = None if result.ledger is None else result.ledger.cumulative
    found = {
        "accuracy": result.accuracy,
        "diversity": None if result.diversity is None else result.diversity["diversity"],
        "flops": None if spent is None else float(spent.flops),
        "new_tokens": None if spent is None else float(spent.new_tokens),
    }
    return {name: value for name, value in found.items() if value is not None}
