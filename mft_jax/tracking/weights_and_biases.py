"""Weights & Biases, online or offline: one W&B run for the run, which later starts continue.

The x axis counts the optimizer steps of all iterations. What was sent cannot be taken back, so RUN_DIR/wandb.json records
how many steps were sent, before they are: no step is sent twice, and steps that were being sent when the process was
killed are missing in W&B.
"""

import json
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any, Literal

import wandb

from mft_jax.runs.results import Result
from mft_jax.runs.store import Store
from mft_jax.tracking.trackers import Record, scalars_of, scalars_of_result

STATE = "wandb.json"


class WeightsAndBiases:
    """Sends the metrics at every `flush`, and the results as the summary of the W&B run."""

    name = "Weights & Biases"

    def __init__(self, store: Store, mode: Literal["online", "offline"], project: str, config: dict[str, Any]):
        self.store = store
        self.state = self._read_state()
        self.before = 0  # the number of steps of earlier iterations
        self.waiting: list[tuple[int, Record]] = []  # (step over all iterations, record) until the next flush
        self.run = wandb.init(
            project=project, id=self.state["id"], name=pathlib.Path(store.root).resolve().name, config=config, mode=mode,
            resume="allow", dir=str(store.root), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def begin(self, iteration: int, records: Sequence[Record]) -> None:
        known = [record for record in records if record["iteration"] <= iteration]
        self.before = sum(record["iteration"] < iteration for record in known)
        self.waiting = list(enumerate(known, start=1))

    def log(self, record: Record) -> None:
        self.waiting.append((self.before + record["step"], record))

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        new = [(step, record) for step, record in waiting if step > self.state["sent"]]
        if not new:
            return
        self.state["sent"] = new[-1][0]
        self._write_state()
        for step, record in new:
            self.run.log(scalars_of(record) | {"iteration": record["iteration"]}, step=step)

    def results(self, results: Sequence[Result]) -> None:
        self.run.summary.update(
            {
                f"{result.task}/{result.method}/iteration_{result.iteration}/{name}": value
                for result in results
                for name, value in scalars_of_result(result).items()
            }
        )

    def close(self) -> None:
        self.run.finish()

    def _read_state(self) -> dict[str, Any]:
        """{"id" of the W&B run, "sent": number of steps}. A new one if the file is missing or damaged."""
        try:
            found = json.loads(self.store.read_if_exists(STATE) or b"")
            return {"id": str(found["id"]), "sent": int(found["sent"])}
        except (ValueError, KeyError, TypeError):
            return {"id": secrets.token_hex(8), "sent": 0}

    def _write_state(self) -> None:
        self.store.write(STATE, (json.dumps(self.state) + "\n").encode())
