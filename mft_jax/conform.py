"""Checks the values of a dataclass against the annotations of its fields, which Python itself does not."""

import collections.abc
import dataclasses
import types
import typing
from typing import Annotated, Any, Literal


def first_wrong_field(value: Any) -> tuple[str, Any, str] | None:
    """(name, value, expected type) of the first field that does not have its annotated type; None if all have it.

    `value` is an instance of a dataclass. Fields of fields are checked too: "lessons[0].stream". A list passes as a tuple and
    an integer as a float, and floats must be finite. Annotations of other kinds, such as functions, are checked roughly.
    """
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        found = _wrong_part(getattr(value, field.name), hints[field.name])
        if found is not None:
            return field.name + found[0], found[1], found[2]
    return None


def _wrong_part(value: Any, hint: Any) -> tuple[str, Any, str] | None:
    """As `first_wrong_field`, for a value and its annotation; the name is that of the part of the value."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _wrong_part(value, args[0])
    if origin in (typing.Union, types.UnionType):
        found = [_wrong_part(value, each) for each in args]
        return None if None in found else next((one for one in found if one and one[0]), ("", value, _words(hint)))
    if origin is Literal:
        return None if any(value is each or value == each for each in args) else ("", value, _words(hint))
    if origin in (tuple, list, collections.abc.Sequence):
        if not isinstance(value, tuple | list):
            return "", value, "a tuple"
        parts = ((index, _wrong_part(each, args[0])) for index, each in enumerate(value))
        return next(((f"[{index}]{wrong[0]}", *wrong[1:]) for index, wrong in parts if wrong), None)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast("type", hint)):
            return "", value, _words(hint)
        wrong = first_wrong_field(value)
        return None if wrong is None else (f".{wrong[0]}", *wrong[1:])
    if origin is collections.abc.Callable or getattr(hint, "_is_protocol", False):
        return None if callable(value) else ("", value, "a function")
    return None if _is_scalar(value, origin or hint) else ("", value, _words(hint))


def _is_scalar(value: Any, kind: Any) -> bool:
    if kind is Any or not isinstance(kind, type):
        return True
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind in (int, float):
        return isinstance(value, int | kind) and abs(value) < 10**300  # False for NaN and infinity
    return isinstance(value, kind)


def _words(hint: Any) -> str:
    """An annotation in words, for messages."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
