"""All settings by name, for tests that go through them."""

import dataclasses
import typing

from mft_jax.config import ExperimentConfig


def nested(field, value):
    """{"a": {"b": value}} for a.b."""
    for name in reversed(field.split(".")):
        value = {name: value}
    return value


def leaves(kind, prefix=""):
    """(dotted name, type without limits) of every setting."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


FIELDS = dict(leaves(ExperimentConfig))
