"""Accuracy with its standard error, and an exact paired test of two methods on the same questions."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of correct answers with its standard error."""

    n: int  # number of questions
    value: float  # share of correct answers p, 0..1
    stderr: float  # sqrt(p (1 - p) / n)


def accuracy(correct: Sequence[bool]) -> Accuracy:
    """The share of True, with the standard error of a binomial proportion. Raises ValueError if `correct` is empty."""
    if not correct:
        raise ValueError("accuracy needs at least one question, got none")
    share = sum(map(bool, correct)) / len(correct)
    return Accuracy(n=len(correct), value=share, stderr=math.sqrt(share * (1 - share) / len(correct)))


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
        p_value=min(
            1.0, 2 * tail / 2**discordant
        ),  # exact integers up to the division, so large counts do not overflow
    )
