"""Accuracy with its standard error, and the exact test of whether one method beats another on the same questions."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    n: int  # questions
    value: float  # share answered correctly, 0..1
    stderr: float  # sqrt(p (1 - p) / n)


def accuracy(correct: Sequence[bool]) -> Accuracy:
    """Share of True, with the standard error of a binomial proportion. Raises ValueError for no questions."""
    if not correct:
        raise ValueError("accuracy needs at least one question, got none")
    share = sum(map(bool, correct)) / len(correct)
    return Accuracy(n=len(correct), value=share, stderr=math.sqrt(share * (1 - share) / len(correct)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """McNemar's exact test of two methods on the same questions."""

    only_first: int  # questions that the first method alone answers correctly
    only_second: int
    difference: float  # accuracy of the first minus that of the second, -1..1
    p_value: float  # two-sided


def paired_test(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Compares answers question by question; both lists are in the same order of questions.

    Under the null hypothesis a question on which they differ favours either with probability 1/2: a binomial test on
    those. Raises ValueError when the lists are empty or of different lengths.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"a paired test needs the same questions twice, got {len(first)} and {len(second)} answers")
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(first),
        p_value=min(1.0, 2 * tail / 2**discordant),  # ints up to the division: no underflow however many questions
    )
