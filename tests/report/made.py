"""Results and states of runs to show, made by hand."""

import dataclasses

from mft_jax.metrics.ledger import Cost, Ledger
from mft_jax.metrics.statistics import Comparison
from mft_jax.runs.results import Result
from mft_jax.runs.status import StageStatus, Status

RESULT = Result(
    method="base", iteration=0, task="arithmetic", n=200, accuracy=0.54, stderr=0.03524, prompt_tokens=12345,
    new_tokens=67, flops=1, device_seconds=1.0, wall_seconds=1234.56, diversity=None,
)  # fmt: skip
TUNED = {
    "method": "multiagent_ft", "iteration": 2, "accuracy": 0.72, "diversity": {"consensus": 0.75, "diversity": 0.25}
}  # fmt: skip
COST = Cost(prompt_tokens=2_000_000, new_tokens=812, train_tokens=94_200, flops=3 * 10**15, wall_seconds=60.5)
LEDGER = Ledger(
    debate=COST, finetuning=Cost(), evaluation=Cost(flops=5 * 10**12, device_seconds=100.0, peak_memory_bytes=3 * 10**9),
    training=COST,
)  # fmt: skip
COMPARISON = Comparison(
    n=200, only_this=50, only_other=14, difference=0.18, low=0.105, high=0.255, p_value=6.86e-06, p_holm=0.0137
)
STATUS = Status(
    path="runs/mine", state="running", error=None, started="2026-01-01T10:00:00", finished=None, results=[], stages=()
)


def result(**changes):
    return dataclasses.replace(RESULT, **changes)


def stage(name, done, total, unit="questions", cost=COST):
    return StageStatus(name, done, total, unit, cost, is_done=done == total)


def status(**changes):
    return dataclasses.replace(STATUS, **changes)
