"""TensorBoard: an event file for each iteration, and one for the results of each method.

    tensorboard --logdir RUN_DIR/tensorboard

An event file can only be appended to, so the files of an iteration are written anew from metrics.jsonl whenever its
finetuning starts or goes on. No step is in them twice, however often the run was killed.
"""

import pathlib
import shutil
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from mft_jax.runs.results import Result
from mft_jax.tracking.trackers import Record, scalars_of, scalars_of_result

FOLDER = "tensorboard"


class TensorBoard:
    """Writes below `run_dir`/tensorboard: iteration_K/ with a point for each optimizer step, results/METHOD/."""

    name = "TensorBoard"

    def __init__(self, run_dir: pathlib.Path):
        self.folder = run_dir / FOLDER
        self.writer: SummaryWriter | None = None

    def begin(self, iteration: int, records: Sequence[Record]) -> None:
        """Also writes the files of earlier iterations in which TensorBoard was not switched on."""
        earlier = {record["iteration"] for record in records if record["iteration"] < iteration}
        missing = [k for k in sorted(earlier) if not (self.folder / _folder_of(k)).exists()]
        for k in (*missing, iteration):
            self.close()
            self.writer = self._new_writer(_folder_of(k))
            for record in records:
                if record["iteration"] == k:
                    self.log(record)
            self.flush()

    def log(self, record: Record) -> None:
        assert self.writer is not None, "`begin` comes first"
        for name, value in scalars_of(record).items():
            self.writer.add_scalar(name, value, record["step"], walltime=record["time"])

    def flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def results(self, results: Sequence[Result]) -> None:
        for method, task in dict.fromkeys((result.method, result.task) for result in results):
            label = f"{method} on {task}".replace("/", "_")
            writer = self._new_writer(f"results/{label}")
            for result in results:
                if (result.method, result.task) == (method, task):
                    for name, value in scalars_of_result(result).items():
                        writer.add_scalar(f"results/{name}", value, result.iteration)
            writer.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _new_writer(self, name: str) -> SummaryWriter:
        """A writer of a new file in an empty folder."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return SummaryWriter(str(self.folder / name), write_to_disk=True)


def _folder_of(iteration: int) -> str:
    return f"iteration_{iteration}"
