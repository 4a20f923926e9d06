"""Which settings may change when a run is resumed, and when the new values take effect."""

import dataclasses
import enum
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mft_jax.config.fields import ExperimentConfig


# Settings that a recorded configuration lacks if an earlier version wrote it, with what that version did.
_EARLIER = {"finetuning": {"critic_answers": "all", "critic_support": 0.0}}


class Change(enum.Enum):
    """How a setting may change after the start of the run. It is part of the type annotation of the setting."""

    NEVER = "never"
    """The setting determines the results and may not change. This is the default."""
    PLACE = "place"
    """It is the path of files, may always change, and is not compared."""
    ANY_TIME = "any time"
    """It affects speed and memory but not results. A new value takes effect at once."""
    NEXT_STEP = "next step"
    """A new value takes effect at the first optimizer step after the last checkpoint."""
    NEXT_ITERATION = "next iteration"
    """A new value takes effect in the first iteration whose training sets have not been selected yet."""
    GROW = "grow"
    """A number may become larger, and a list may gain names. Finished work stays valid."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting whose value differs from the one that the run was started with."""

    field: str
    """Its name in the command, e.g. sampling.rows."""
    stored: Any
    given: Any
    change: Change
    allowed: bool
    """Whether a run with the stored value may be resumed with the given value."""


def compare(stored: "ExperimentConfig", given: "ExperimentConfig") -> tuple[Difference, ...]:
    """The settings that differ, in the order of the configuration, without those of kind `Change.PLACE`."""
    return tuple(_differences(stored, given, ""))


def lasting(settings: Any) -> dict[str, Any]:
    """The settings of one section, such as `config.sampling`, that determine results and may never change."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    return {name: getattr(settings, name) for name, hint in hints.items() if _change_of(hint) is Change.NEVER}


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


def with_earlier_settings(raw: Any) -> Any:
    """The plain values of a configuration that a run recorded. Missing settings get the values that its version used."""
    if not isinstance(raw, dict):
        return raw
    filled = {name: known | raw[name] for name, known in _EARLIER.items() if isinstance(raw.get(name), dict)}
    return raw | filled
