"""What is left of a run, in one line for the progress display."""

import jax

from mft_jax.config import ExperimentConfig
from mft_jax.parallel.memory import peak_memory_of
from mft_jax.report.grid_table import time_left
from mft_jax.report.table import short_count
from mft_jax.runs.grid_status import estimate_run


def describe_outlook(config: ExperimentConfig) -> str:
    """The estimated time that is left of the whole run, and the most memory in use so far.

    The estimate is left out before a stage is finished, and the memory where it is not known.
    """
    seconds, is_whole = estimate_run(config)
    memory = peak_memory_of(jax.local_devices())
    parts = [] if seconds is None else [f"whole run: {time_left(seconds, is_whole)} left"]
    parts += [f"memory {short_count(memory)}B"] if memory else []
    return ", ".join(parts)
