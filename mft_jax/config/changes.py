"""Which settings of a run may change between two of its starts, and from when on the new value counts."""

import dataclasses
import enum
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mft_jax.config.fields import ExperimentConfig


class Change(enum.Enum):
    """When a setting may change after the run has begun; stands beside the setting, as its limits do."""

    NEVER = "never"
    """It decides the results. A setting that says nothing is of this kind."""
    PLACE = "place"
    """It only says where files are, and is not compared."""
    ANY_TIME = "any time"
    """It decides speed and memory, not results, and takes effect at once."""
    NEXT_STEP = "next step"
    """It takes effect at the first optimizer step after the last saved one."""
    GROW = "grow"
    """It may grow: a number may become larger, a list may gain names. What was done stays valid."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One setting whose value is another than when the run began."""

    field: str
    """As the command spells it: sampling.rows."""
    stored: Any
    given: Any
    change: Change
    allowed: bool
    """Whether a run with the stored value may be resumed with the given one."""


def compare(stored: "ExperimentConfig", given: "ExperimentConfig") -> tuple[Difference, ...]:
    """The settings that differ, in the order of the configuration; those that only say where files are left out."""
    return tuple(_differences(stored, given, ""))


def _differences(stored: Any, given: Any, prefix: str) -> Iterator[Difference]:
    for name, hint in typing.get_type_hints(type(stored), include_extras=True).items():
        old, new = getattr(stored, name), getattr(given, name)
        if dataclasses.is_dataclass(old):
            yield from _differences(old, new, f"{prefix}{name}.")
            continue
        change = _change_of(hint)
        if old != new and change is not Change.PLACE:
            yield Difference(prefix + name, old, new, change, _is_allowed(change, old, new))


def _change_of(hint: Any) -> Change:
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Change)), Change.NEVER)


def _is_allowed(change: Change, old: Any, new: Any) -> bool:
    if change is Change.GROW:
        return set(old) <= set(new) if isinstance(old, tuple) else old < new
    return change is not Change.NEVER
