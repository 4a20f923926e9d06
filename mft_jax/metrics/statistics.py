"""Compares methods on the same questions: exact McNemar test, bootstrap interval, and Holm's correction."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mft_jax.seeds import bootstrap

CONFIDENCE = 0.95  # of the interval of a difference
_DRAWS = 10_000  # bootstrap samples; the ends of the interval are then accurate to a few percent of its width


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The result of the exact McNemar test of two methods on the same questions."""

    only_first: int  # number of questions that only the first method answers correctly
    only_second: int  # number of questions that only the second method answers correctly
    difference: float  # accuracy of the first minus that of the second, -1..1
    p_value: float  # two-sided


def paired_test(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Compares two methods question by question. Both lists are in the same order of questions.

    Under the null hypothesis, each question that only one method answers correctly favours either method with
    probability 1/2. The test is a two-sided binomial test on these questions. Raises ValueError if the lists are empty
    or differ in length.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"a paired test needs two lists of the same length, not empty, got {len(first)} and {len(second)}"
        )
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(first),
        # Exact integers up to the division, so large counts do not overflow.
        p_value=min(1.0, 2 * tail / 2**discordant),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval of the difference between two accuracies."""

    low: float  # -1..1
    high: float


def bootstrap_interval(first: Sequence[bool], second: Sequence[bool], seed: int) -> Interval:
    """The 95 % percentile bootstrap interval of the accuracy of `first` minus that of `second`, on the same questions.

    Questions are resampled in pairs. Only the numbers of questions that one method alone answers correctly matter, and
    these are multinomial, so they are drawn directly. The same arguments give the same interval. Raises ValueError as
    `paired_test` does.
    """
    counts, n = paired_test(first, second), len(first)
    shares = np.array([counts.only_first, counts.only_second, n - counts.only_first - counts.only_second]) / n
    draws = bootstrap(seed).multinomial(n, shares, size=_DRAWS)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(low=float(low), high=float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected by Holm's step-down method (1979), in the given order.

    Rejecting the hypotheses whose corrected value is at most alpha keeps the probability of any false rejection at most
    alpha, whatever the dependence between the tests. Raises ValueError for a p value outside 0..1.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"a p value is between 0 and 1, got {wrong[0]}")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method compared with another on the same questions."""

    n: int
    """Number of questions, those without a known answer excluded."""
    only_this: int
    """Number of questions that only this method answers correctly."""
    only_other: int
    """Number of questions that only the other method answers correctly."""
    difference: float
    """Accuracy of this method minus that of the other, -1..1."""
    low: float
    """Lower end of the 95 % bootstrap interval of the difference."""
    high: float
    """Upper end of this interval."""
    p_value: float
    """Two-sided, of the exact McNemar test."""
    p_holm: float
    """The same, corrected by Holm's method for all comparisons that were made together."""


def compare_with_first(correct: Sequence[Sequence[bool | None]], seed: int) -> list[Comparison | None]:
    """Compares every method with the first one. The first element of the result is None.

    `correct`: for each method, whether its answer to each question is correct, in the same order of questions; None if
    the right answer is not known. Without any known answer, all elements are None. `seed` is that of the bootstrap.
    Raises ValueError if the lists differ in length.
    """
    if not correct:
        return []
    found: list[Comparison | None] = [_compare(own, correct[0], seed) for own in correct[1:]]
    p_values = iter(holm([one.p_value for one in found if one]))
    return [None, *(dataclasses.replace(one, p_holm=next(p_values)) if one else None for one in found)]


def _compare(this: Sequence[bool | None], other: Sequence[bool | None], seed: int) -> Comparison | None:
    """The comparison before the correction; None if no answer is known."""
    known = [(a, b) for a, b in zip(this, other, strict=True) if a is not None and b is not None]
    if not known:
        return None
    first, second = [a for a, _ in known], [b for _, b in known]
    test, interval = paired_test(first, second), bootstrap_interval(first, second, seed)
    return Comparison(
        n=len(known),
        only_this=test.only_first,
        only_other=test.only_second,
        difference=test.difference,
        low=interval.low,
        high=interval.high,
        p_value=test.p_value,
        p_holm=test.p_value,
    )
