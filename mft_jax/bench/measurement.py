"""What `mft bench` measures, as values, and what follows from them."""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from mft_jax.errors import UserError
from mft_jax.files import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The measured limits of all devices of the mesh together."""

    flops_per_second: float  # of a large matmul in the compute dtype
    bytes_per_second: float  # of reading and writing a large array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a piece of work needs, without padding and without recomputation."""

    tokens: int  # processed or sampled
    flops: int  # as in `mft_jax.metrics.flops`
    bytes: int  # least memory traffic: weights once per call or decoding step, and the KV cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The time of one piece of work, and its share of the limits."""

    name: str  # what was measured, such as "decode"
    case: str  # on what, such as "3 adapters x 16 rows"
    seconds: float  # median over the runs
    runs: tuple[float, ...]  # seconds of each run, after a warm-up
    tokens: int
    tokens_per_second: float
    share_of_peak: float  # FLOPs per second over those of a large matmul: the model FLOPs utilization (MFU)
    share_of_roofline: float  # least possible time (by FLOPs or by bytes, whichever is longer) over the measured time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The result of `mft bench`."""

    config: dict[str, Any]
    environment: dict[str, Any]
    limits: Limits
    measurements: tuple[Measurement, ...]
    ratios: dict[str, float]  # of tokens per second
    debate: dict[str, float]  # shares of a debate's time, slots and prefilled tokens
    grading: dict[str, float]  # pairs of formulas per second
    compilations: dict[str, int]  # by program
    compile_seconds: float
    peak_memory_bytes: int  # of the process on CPUs, of the fullest device elsewhere


def measure(name: str, case: str, work: Work, limits: Limits, seconds: list[float]) -> Measurement:
    """The measurement of `work` that took `seconds` in each of several runs."""
    median = statistics.median(seconds)
    least = max(work.flops / limits.flops_per_second, work.bytes / limits.bytes_per_second)
    return Measurement(
        name=name,
        case=case,
        seconds=median,
        runs=tuple(seconds),
        tokens=work.tokens,
        tokens_per_second=work.tokens / median,
        share_of_peak=work.flops / limits.flops_per_second / median,
        share_of_roofline=least / median,
    )


def time_runs(call: Callable[[], Any], repeats: int) -> list[float]:
    """The seconds of each of `repeats` calls, after one that is not timed. Waits for the arrays that a call returns."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return seconds


def write_report(report: Report, path: str | pathlib.Path) -> None:
    """Writes the report as JSON. Raises UserError if the file cannot be written."""
    atomic_write(pathlib.Path(path), json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def read_report(path: str | pathlib.Path) -> Report:
    """The inverse of `write_report`. Raises UserError if the file cannot be read or is no report."""
    try:
        raw = json.loads(pathlib.Path(path).read_bytes())
        raw["limits"] = Limits(**raw["limits"])
        raw["measurements"] = tuple(Measurement(**own | {"runs": tuple(own["runs"])}) for own in raw["measurements"])
        return Report(**raw)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a file that `mft bench --json` wrote."
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is not a report of `mft bench --json` ({reason}): give another file.") from error
