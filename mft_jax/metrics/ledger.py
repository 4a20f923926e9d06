"""Costs in tokens, FLOPs, seconds and memory, and their sums."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a piece of work. Add two costs with `+`, and many with `total`."""

    prompt_tokens: int = 0
    """Prompt tokens, without padding."""
    new_tokens: int = 0
    """Tokens sampled, stop tokens included."""
    train_tokens: int = 0
    """Tokens trained on, over all epochs; prompts included, without padding."""
    flops: int = 0
    """Floating-point operations that the algorithm needs, by `mft_jax.metrics.flops`; without padding."""
    device_seconds: float = 0.0
    """Seconds during which dispatched programs were running, times the number of devices; without compilation, saving
    and logging."""
    wall_seconds: float = 0.0
    """Wall time in seconds, everything included."""
    peak_memory_bytes: int = 0
    """The most memory that the process had used when the work ended: of the fullest device, or on CPUs of the process.
    0: not known. In a sum it is the maximum."""

    def __add__(self, other: "Cost") -> "Cost":
        names = (field.name for field in dataclasses.fields(self) if field.name != "peak_memory_bytes")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Cost(**sums, peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes))

    def to_dict(self) -> dict[str, int | float]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "a cost") -> "Cost":
        """The inverse of `to_dict`; missing fields are 0. Raises UserError, naming `source`, for an unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(raw) - names)
        if unknown:
            raise UserError(
                f"{source}: {unknown[0]!r} is not a field of a cost, expected {', '.join(sorted(names))}: "
                "the file was written by another version of mft_jax; use that version or a new run directory."
            )
        return cls(**raw)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of the costs; the zero cost if there are none."""
    return sum(costs, start=Cost())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """What a result has cost, by stage, and with everything that had to be done for it."""

    debate: Cost
    """The debate that made the training data of this iteration; zero without finetuning."""
    finetuning: Cost
    """The finetuning of this iteration; zero without finetuning."""
    evaluation: Cost
    """The answers to all evaluation questions: the cost at test time."""
    training: Cost
    """The debates and finetunings of this iteration and of all before it."""

    @property
    def cumulative(self) -> Cost:
        """The cost of these answers, starting from the base model: all training up to here, and this evaluation."""
        return self.training + self.evaluation

    def to_dict(self) -> dict[str, dict[str, int | float]]:
        """Plain values, for JSON, with `cumulative`."""
        names = (*(field.name for field in dataclasses.fields(self)), "cumulative")
        return {name: getattr(self, name).to_dict() for name in names}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "a ledger") -> "Ledger":
        """The inverse of `to_dict`. Raises KeyError for a missing stage, and UserError as `Cost.from_dict` does."""
        return cls(**{field.name: Cost.from_dict(raw[field.name], source) for field in dataclasses.fields(cls)})
