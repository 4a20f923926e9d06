"""Accuracy with its standard error."""

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
