"""What the work of a run cost, as data of the page: stages, training curves, and the FLOPs of single messages."""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.config import ExperimentConfig, LoraConfig
from mft_jax.debate import Turn
from mft_jax.errors import UserError
from mft_jax.metrics.flops import sampling_flops
from mft_jax.models.config import ModelConfig, read_model_config
from mft_jax.models.lora import resolve_targets
from mft_jax.runs import layout
from mft_jax.runs.store import Store
from mft_jax.runs.survey import StageStatus
from mft_jax.session import base_directory

CURVE_POINTS = 200  # per curve; a curve with more steps is averaged over equal parts

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class MessageCost:
    """Computes the FLOPs of single messages; without a model they are not known."""

    model: ModelConfig | None
    lora: LoraConfig | None

    @classmethod
    def of(cls, config: ExperimentConfig) -> "MessageCost":
        """For the base model of a run, if its configuration can be read without a download."""
        path = config.model.path
        if path is not None and not pathlib.Path(path).expanduser().is_dir():
            return cls(None, None)
        try:
            model = read_model_config(base_directory(config.model))
            lora = dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
        except UserError:
            return cls(None, None)
        return cls(model, lora)

    def flops(self, turn: Turn, *, adapted: bool) -> int | None:
        """The FLOPs of sampling a message by an adapter, or by the base model if not `adapted`."""
        if self.model is None:
            return None
        lora = self.lora if adapted else None
        return sampling_flops(self.model, lora, prompt_tokens=turn.prompt_tokens, new_tokens=turn.new_tokens)


def stage_costs(stages: Sequence[StageStatus], devices: int) -> list[Json]:
    """How far each stage has got, and its cost. "busy_seconds" is how long its `devices` worked, all at the same time."""
    return [
        {
            "name": stage.name,
            "done": stage.done,
            "total": stage.total,
            "unit": stage.unit,
            "is_done": stage.is_done,
            **stage.cost.to_dict(),
            "busy_seconds": stage.cost.device_seconds / devices,
        }
        for stage in stages
    ]


def training_curves(store: Store) -> list[Json]:
    """[{"adapter", "iteration", "step": [...], "loss": [...], "grad_norm": [...], ...}] from metrics.jsonl.

    Lines that are not records are skipped. Values that were not finite are None.
    """
    curves: dict[tuple[int, str], dict[str, list[float | None]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for record in _records(store):
        for name, value in record.items():
            adapter, slash, scalar = name.rpartition("/")
            if slash and isinstance(value, int | float | None):
                own = curves[record["iteration"], adapter]
                if scalar == "loss":
                    own["step"].append(record["step"])
                own[scalar].append(value)
    return [
        {"adapter": adapter, "iteration": iteration, **{name: _thinned(values) for name, values in own.items()}}
        for (iteration, adapter), own in sorted(curves.items())
    ]


def _records(store: Store) -> list[Mapping[str, Any]]:
    records = []
    for line in (store.read_if_exists(layout.METRICS) or b"").split(b"\n"):
        try:
            record = json.loads(line)
            if isinstance(record["iteration"], int) and isinstance(record["step"], int):
                records.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return records


def _thinned(values: Sequence[float | None]) -> list[float | None]:
    """At most CURVE_POINTS means over consecutive parts of (nearly) equal length."""
    count = min(len(values), CURVE_POINTS)
    ends = [len(values) * i // count for i in range(count + 1)] if count else []
    return [_mean(values[start:end]) for start, end in itertools.pairwise(ends)]


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return float(f"{sum(finite) / len(finite):.5g}") if finite else None
