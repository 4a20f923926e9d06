"""The record that a run ended early, because its society collapsed. It is written once and read by later starts."""

import json

from mft_jax.config import ExperimentConfig
from mft_jax.metrics.monitor import Monitor
from mft_jax.runs import layout
from mft_jax.runs.store import Store


def record_end(store: Store, iteration: int, monitor: Monitor) -> None:
    """Records that the run ends after `iteration`."""
    record = {"iteration": iteration, "verdict": monitor.verdict, "reason": monitor.reason}
    store.write(layout.verdict(iteration), (json.dumps(record, indent=2) + "\n").encode())


def last_iteration(store: Store, config: ExperimentConfig) -> int:
    """The last iteration that the run has: the one after which it ended early, or `iterations`.

    Only whether the record exists counts, so that no damage to its text can change the decision.
    """
    if config.stop_when_collapsing:
        for iteration in range(1, config.iterations + 1):
            if store.exists(layout.verdict(iteration)):
                return iteration
    return config.iterations
