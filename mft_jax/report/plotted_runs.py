"""Puts the results of several runs together for plots: runs that differ in their seed only are repetitions."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mft_jax.config import Change, ExperimentConfig, compare

if TYPE_CHECKING:  # importing this module takes seconds
    from mft_jax.runs.results import Result

_OWN_COLUMNS = {"seed", "method", "baselines", "iterations", "stop_when_collapsing"}  # told apart in other ways


@dataclasses.dataclass(frozen=True)
class PlottedRun:
    """A run to plot."""

    name: str  # to tell runs of different settings apart, for example its directory
    config: ExperimentConfig
    results: "Sequence[Result]"


def merge_runs(runs: Sequence[PlottedRun]) -> "list[Result]":
    """All results. If not all runs are repetitions of one another, a method's name is followed by that of its run.

    Of several repetitions it is the name of the first. A result that several runs of the same seed have, such as that of a
    baseline, is taken once.
    """
    groups: list[list[PlottedRun]] = []
    for run in runs:
        group = next((own for own in groups if _are_repetitions(own[0].config, run.config)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    merged: list[Result] = []
    for group in groups:
        seen = set()
        for run in group:
            for result in run.results:
                key = (run.config.seed, result.method, result.iteration, result.task)
                if key not in seen:
                    seen.add(key)
                    name = result.method if len(groups) == 1 else f"{result.method} ({group[0].name})"
                    merged.append(dataclasses.replace(result, method=name))
    return merged


def _are_repetitions(first: ExperimentConfig, second: ExperimentConfig) -> bool:
    """Whether two runs differ at most in `_OWN_COLUMNS` and in settings that do not change results."""
    differences = compare(first, second)
    return all(own.field in _OWN_COLUMNS or own.change is Change.ANY_TIME for own in differences)
