"""The settings of rotary position embeddings in a Hugging Face config.json."""

import dataclasses
import math
from typing import Any

from mft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every frequency is divided by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies are divided by `factor`, high ones kept, those in between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongScaling:
    """Each frequency is divided by its own factor: one set of them for up to `original_max_position` tokens, one for more."""

    short_factors: tuple[float, ...]  # one for each pair of rotated dimensions
    long_factors: tuple[float, ...]
    original_max_position: int
    attention_factor: float  # scales the rotated queries and keys


Scaling = LinearScaling | Llama3Scaling | LongScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: the first `dims` of a head's H dimensions are rotated, the others stay as they are."""

    theta: float
    dims: int
    scaling: Scaling | None = None


_SETTINGS = {  # rope type -> its settings
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
_OPTIONS = {"longrope": ("factor", "attention_factor")}
_AGAIN = "download the checkpoint again"


def parse_rope(
    parameters: dict[str, Any] | None, head_dim: int, max_positions: int, *, partial: bool, source: str
) -> Rope:
    """Reads the settings of one rotary embedding, in the spelling of transformers 5. Each value has been checked before.

    `partial`: whether the family may rotate only a share of the `head_dim` dimensions. Raises UserError for a type or a
    setting that is not implemented, and for settings that do not fit together.
    """
    settings = {name: value for name, value in (parameters or {}).items() if value is not None}
    kind, theta = settings.pop("rope_type", None), settings.pop("rope_theta", None)
    if kind is None or theta is None:
        raise UserError(f"{source}: the rope settings lack rope_type or rope_theta: {_AGAIN}.")
    settings.pop("type", None)  # the old name of rope_type
    if kind not in _SETTINGS:
        implemented = ", ".join(map(repr, _SETTINGS))
        raise UserError(
            f"{source}: rope type {kind!r} is not implemented, expected one of {implemented}: give another model."
        )
    share = settings.pop("partial_rotary_factor", 1.0) if partial else 1.0
    dims = int(head_dim * share)
    if dims < 2 or dims % 2 or dims > head_dim:
        raise UserError(
            f"{source}: {dims} of the {head_dim} dimensions of a head are rotated, expected an even number "
            f"from 2 to {head_dim}: {_AGAIN}."
        )
    _check_names(kind, settings, source)
    return Rope(theta=float(theta), dims=dims, scaling=_parse_scaling(kind, settings, dims, max_positions, source))


def _check_names(kind: str, settings: dict[str, Any], source: str) -> None:
    missing = sorted(set(_SETTINGS[kind]) - set(settings))
    if missing:
        raise UserError(f"{source}: the {kind} rope settings lack {missing[0]!r}: {_AGAIN}.")
    extra = sorted(set(settings) - set(_SETTINGS[kind]) - set(_OPTIONS.get(kind, ())))
    if kind == "default" and "original_max_position_embeddings" in extra:
        extra.remove("original_max_position_embeddings")  # Phi-3 4k states it without using it
    if extra:
        raise UserError(
            f"{source}: the rope setting {extra[0]!r} = {settings[extra[0]]!r} is not implemented for {kind!r}: give "
            "another model."
        )


def _parse_scaling(kind: str, settings: dict[str, Any], dims: int, max_positions: int, source: str) -> Scaling | None:
    if kind == "linear":
        return LinearScaling(factor=settings["factor"])
    if kind == "llama3":
        return _parse_llama3(settings, source)
    if kind == "longrope":
        return _parse_longrope(settings, dims, max_positions, source)
    return None


def _parse_llama3(settings: dict[str, Any], source: str) -> Llama3Scaling:
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    if not low < high:
        raise UserError(
            f"{source}: low_freq_factor is {low}, expected less than the high_freq_factor of {high}: {_AGAIN}."
        )
    return Llama3Scaling(
        factor=settings["factor"],
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=settings["original_max_position_embeddings"],
    )


def _parse_longrope(settings: dict[str, Any], dims: int, max_positions: int, source: str) -> LongScaling:
    for name in ("short_factor", "long_factor"):
        if len(settings[name]) != dims // 2:
            raise UserError(
                f"{source}: the rope setting {name!r} has {len(settings[name])} numbers, expected {dims // 2}: {_AGAIN}."
            )
    original = settings["original_max_position_embeddings"]
    factor = settings.get("factor") or max_positions / original
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongScaling(
        short_factors=tuple(settings["short_factor"]),
        long_factors=tuple(settings["long_factor"]),
        original_max_position=original,
        attention_factor=settings.get("attention_factor") or usual,
    )
