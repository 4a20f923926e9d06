"""Limits of settings, written in their type annotations: `rank: Annotated[int, at_least(1)] = 16`."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Limit:
    """A condition on a value. Error messages say "expected" followed by `expected`, for example "at least 1"."""

    expected: str
    holds: Callable[[Any], bool]


def at_least(bound: float) -> Limit:
    return Limit(f"at least {bound:,}", lambda value: value >= bound)


def at_most(bound: float) -> Limit:
    return Limit(f"at most {bound:,}", lambda value: value <= bound)


def above(bound: float) -> Limit:
    return Limit(f"above {bound:,}", lambda value: value > bound)


def below(bound: float) -> Limit:
    return Limit(f"below {bound:,}", lambda value: value < bound)


def within(values: range) -> Limit:
    """Any integer of a range of step 1."""
    return Limit(f"from {values[0]:,} to {values[-1]:,}", lambda value: value in values)


def zero_or(limit: Limit) -> Limit:
    return Limit(f"0, or {limit.expected}", lambda value: value == 0 or limit.holds(value))


def one_of(*names: str) -> Limit:
    return Limit(f"one of {', '.join(names)}", lambda value: value in names)


def at_least_one(thing: str) -> Limit:
    """For lists: the list is not empty."""
    return Limit(f"at least one {thing}", lambda values: len(values) > 0)


WITHOUT_REPETITION = Limit("every value once", lambda values: len(set(values)) == len(values))

Count = Annotated[int, at_least(1), at_most(10**9)]
Share = Annotated[float, at_least(0), at_most(1)]
Seed = Annotated[int, within(range(-(2**63), 2**63))]  # the range that jax.random.key accepts
