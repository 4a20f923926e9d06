"""What work costs: tokens, FLOPs and seconds, added up from the journals of the stages that spent them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The price of a piece of work. Costs add with `+`; `total` adds many."""

    prompt_tokens: int = 0
    """Tokens read by prefill, without padding; tokens that are in the KV cache already are not read again."""
    new_tokens: int = 0
    """Tokens sampled, stop tokens included."""
    train_tokens: int = 0
    """Tokens seen by the train step over all epochs, prompts included, padding not."""
    flops: int = 0
    """Floating-point operations the algorithm asks for, by `mft_jax.metrics.flops`; padding is not counted."""
    device_seconds: float = 0.0
    """Seconds in which dispatched programs were under way, times the number of devices; compilation, scheduling, saving
    and logging are not included."""
    wall_seconds: float = 0.0
    """Wall time in seconds, everything included."""

    def __add__(self, other: "Cost") -> "Cost":
        names = (field.name for field in dataclasses.fields(self))
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def to_dict(self) -> dict[str, int | float]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "a cost") -> "Cost":
        """The inverse of `to_dict`; absent fields are 0. Raises UserError, naming `source`, for an unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(raw) - names)
        if unknown:
            raise UserError(
                f"{source}: {unknown[0]!r} is not a field of a cost, expected {', '.join(sorted(names))}: "
                "the file was written by another version of mft_jax; use that version or a new run directory."
            )
        return cls(**raw)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum; of nothing, the zero cost."""
    return sum(costs, start=Cost())
