"""A run of a few questions with a tiny model, and how to read what it leaves behind."""

import collections
import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np

from mft_jax.config import (
    DebateConfig,
    ExperimentConfig,
    FinetuningConfig,
    ModelSource,
    RoleConfig,
    SamplingConfig,
    TaskConfig,
)
from mft_jax.models.config import read_model_config
from mft_jax.report.progress import SilentReporter
from mft_jax.runs.adapters import read_adapters
from tests.answering_model import answering_model

MODEL = answering_model()
SMALL = ExperimentConfig(
    model=ModelSource(path=str(MODEL)),
    iterations=2,
    task=TaskConfig(train_questions=12, eval_questions=8),
    debate=DebateConfig(agents=2),
    sampling=SamplingConfig(rows=8, prefill_rows=4, max_new_tokens=96, chunk_questions=4, steps_per_dispatch=4),
    finetuning=FinetuningConfig(
        # With an eps below the rounding of gradients (1e-8), Adam turns a gradient that is nothing but rounding into a
        # whole step; a mesh adds up in another order, so its rounding differs.
        eps=1e-6,
        generator=RoleConfig(learning_rate=1e-4, epochs=12),
        critic=RoleConfig(learning_rate=1e-4, epochs=6),
        batch_rows=2,
        row_tokens=256,
        save_every=1,
    ),
)


class Remarks(SilentReporter):
    """Remembers what the run said, and the FLOPs that it reported for each stage."""

    def __init__(self):
        self.said, self.flops = [], collections.Counter()

    @contextlib.contextmanager
    def stage(self, name, total, unit, done=0):
        with super().stage(name, total, unit, done) as stage:
            stage.add_flops = lambda flops: self.flops.update({name: flops})
            yield stage

    def say(self, text):
        self.said.append(text)


def adapters_of(directory, iteration, model=MODEL):
    """{name: weights} of a finished iteration."""
    return read_adapters(directory, iteration, read_model_config(pathlib.Path(model)))[1]


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def without_measurements(value):
    """Results without times and memory, which alone differ between two runs of the same."""
    if dataclasses.is_dataclass(value):
        return without_measurements(dataclasses.asdict(value))
    if isinstance(value, list):
        return [without_measurements(part) for part in value]
    if not isinstance(value, dict):
        return value
    measured = ("seconds", "memory_bytes")
    return {name: without_measurements(part) for name, part in value.items() if not name.endswith(measured)}


def run_files(directory, iterations=2, model=MODEL):
    """What must be the same bytes however often a run was killed: transcripts, training sets, adapters, results."""
    files = {}
    for path in sorted(directory.path.rglob("*.jsonl")):
        if (
            not path.name.endswith("journal.jsonl")
            and path.name != "metrics.jsonl"
            and not {"evaluations", "damaged"} & set(path.parts)
        ):
            files[str(path.relative_to(directory.path))] = path.read_bytes()
    results = json.loads(directory.results_file.read_text())
    own = [row for row in results if row["task"] == "arithmetic"]
    files["results"] = without_measurements(own)
    for iteration in range(1, iterations + 1):
        adapters = adapters_of(directory, iteration, model)
        files[f"adapters {iteration}"] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(adapters)]
    return files
