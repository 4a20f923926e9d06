"""Converts configurations to and from plain values, and checks each value against the type and limits of its field."""

import dataclasses
import difflib
import reprlib
import types
import typing
from typing import Annotated, Any, Literal, NoReturn

import yaml

from mft_jax.config.fields import ExperimentConfig, MeshConfig
from mft_jax.config.limits import Limit
from mft_jax.errors import UserError

LARGEST_FLOAT32 = 3.4028234663852886e38  # a larger number is infinity in compiled programs


def from_dict(raw: dict[str, Any], source: str = "configuration") -> ExperimentConfig:
    """Builds a configuration from plain values, with defaults for missing fields. Raises UserError as `validate` does."""
    config = _build(ExperimentConfig, raw, source, "")
    _check_divisibility(config, source)
    return config


def check_fields(raw: dict[str, Any], source: str) -> None:
    """Raises UserError if one of these fields has a wrong name, type or value. Relations to other fields are not checked."""
    _build(ExperimentConfig, raw, source, "")


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as plain values, with lists for tuples. The inverse of `from_dict`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def to_yaml(config: ExperimentConfig) -> str:
    """The configuration as the text of a YAML file, every field included."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def validate(config: ExperimentConfig, source: str = "configuration") -> None:
    """Raises UserError if a value has the wrong type, is outside the limits of its field, or does not fit the mesh.

    The message names `source` (a file, or "command line") and the field, e.g. sampling.top_p.
    """
    from_dict(to_dict(config), source)


def _check_divisibility(config: ExperimentConfig, source: str) -> None:
    """Checks that numbers that are split over the mesh are divisible by the size of their mesh axis."""
    agent, data = config.mesh.agent, config.mesh.data
    divided = {
        "sampling.rows": (config.sampling.rows, "mesh.data", data),
        "sampling.prefill_rows": (config.sampling.prefill_rows, "mesh.data", data),
        "finetuning.batch_rows": (config.finetuning.batch_rows, "mesh.data", data),
        "debate.agents": (config.debate.agents, "mesh.agent", agent),
    }
    for name, (value, axis, devices) in divided.items():
        if value % devices:
            _refuse(source, name, value, f"a multiple of {axis} = {devices}")


def _build(kind: Any, raw: Any, source: str, prefix: str) -> Any:
    """Builds the dataclass `kind` from a mapping. `prefix` is the path of the mapping, e.g. "sampling.", or ""."""
    if not isinstance(raw, dict):
        _refuse(source, prefix.rstrip(".") or "the file", raw, "a mapping of fields")
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for name, value in raw.items():
        if name not in names:
            given = name[:80] if isinstance(name, str) else _shorten(name)
            near = difflib.get_close_matches(given, names, n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: there is no field {prefix}{given}; did you mean {prefix}{near}?")
        values[name] = _convert(hints[name], value, source, prefix + name)
    return kind(**values)


def _convert(hint: Any, value: Any, source: str, name: str) -> Any:
    """Converts `value` to the type `hint`. Raises UserError if that is impossible, or if a limit is not satisfied."""
    if hint is MeshConfig and value == "auto":
        return MeshConfig(auto=True)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, name + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(args[0], value, source, name)
        limits = [mark for mark in args[1:] if isinstance(mark, Limit)]
        if not all(limit.holds(value) for limit in limits):
            _refuse(source, name, value, " and ".join(limit.expected for limit in limits))
        return value
    if origin in (typing.Union, types.UnionType):  # T | None is the only kind
        return None if value is None else _convert(args[0], value, source, name)
    if origin is Literal:
        value = "off" if value is False and "off" in args else value  # YAML reads off, without quotes, as false
        return value if value in args else _refuse(source, name, value, f"one of {', '.join(map(repr, args))}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            _refuse(source, name, value, "a list")
        return tuple(_convert(args[0], item, source, name) for item in value)
    return _convert_scalar(hint, value, source, name)


def _convert_scalar(kind: type, value: Any, source: str, name: str) -> Any:
    """Converts to bool, int, float or str. A float may be given as an int, or as text: YAML reads 1e-3 as a string."""
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            _refuse(source, name, value, "a number")
        return number if abs(number) <= LARGEST_FLOAT32 else _refuse(source, name, value, "a finite number")
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{source}: {name} is {_shorten(value)} ({type(value).__name__}), expected {kind.__name__}.")


def _refuse(source: str, name: str, got: Any, expected: str) -> NoReturn:
    raise UserError(f"{source}: {name} is {_shorten(got)}, expected {expected}.")


_SHORTENED = reprlib.Repr()
_SHORTENED.maxlevel, _SHORTENED.maxstring, _SHORTENED.maxother = 2, 80, 80


def _shorten(value: Any) -> str:
    """The repr of a value, shortened for an error message."""
    try:
        return _SHORTENED.repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"
