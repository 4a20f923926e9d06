"""The accuracy of a majority vote over k independent answers, for every k, from one set of N answers per question."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mft_jax.metrics.diversity import Equivalent


@dataclasses.dataclass(frozen=True, kw_only=True)
class VotePoint:
    """The majority vote over k of the answers."""

    k: int
    accuracy: float  # 0..1, expected over all choices of k answers and over ties
    stderr: float  # over questions
    flops: int  # of k answers to all questions


def vote_curve(
    transcripts: Sequence[Mapping[str, Any]], equivalent: Equivalent, flops: int
) -> tuple[VotePoint, ...] | None:
    """The votes over 1..N answers; None unless there are questions with a known answer and several agents.

    `transcripts`, as parsed JSON lines, have one round, in which every agent answered independently and by the same
    model. `flops` is the cost of all N answers to all questions.
    """
    known = [line for line in transcripts if line["gold"] is not None]
    agents = len(known[0]["agents"]) if known else 0
    if agents < 2:
        return None
    chances = np.array([chances_of_right_vote(*_count_classes(line, equivalent), agents) for line in known])
    errors = chances.std(axis=0) / math.sqrt(len(known))
    return tuple(
        VotePoint(k=k, accuracy=float(mean), stderr=float(error), flops=flops * k // agents)
        for k, mean, error in zip(range(1, agents + 1), chances.mean(axis=0), errors, strict=True)
    )


def chances_of_right_vote(right: int, wrong: Sequence[int], n: int) -> Float[np.ndarray, "n"]:
    """The probabilities that the right answer wins a majority vote over k = 1..n of n answers, drawn without replacement.

    `right` answers are right, and `wrong` are the sizes of the classes of equal wrong answers; the remaining answers are
    missing and have no vote. Ties are broken uniformly at random. Exact but for rounding: the choices are counted.
    """
    # A row for every number v of votes for the right answer and every node of an integral. With w wrong classes of v votes
    # too, the right answer wins with probability 1 / (1 + w), the integral of t**w over 0..1; Gauss and Legendre's rule
    # computes it exactly with enough nodes t.
    votes, ties, weights = [], [], []
    for v in range(1, right + 1):
        nodes, shares = np.polynomial.legendre.leggauss(sum(size >= v for size in wrong) // 2 + 1)
        votes += [v] * len(nodes)
        ties += ((nodes + 1) / 2).tolist()
        weights += (shares / 2).tolist()
    v, t = np.array(votes, int)[:, None], np.array(ties)[:, None]
    # rows[r, m]: when m answers of the classes so far are drawn, the expected value of t**w where no wrong class has more
    # than v votes and the right one has exactly v; 0 elsewhere.
    rows = np.zeros((len(votes), n + 1))
    rows[np.arange(len(votes)), votes] = 1
    before = right
    for size in wrong:
        keep = lambda own: np.where(own < v, 1.0, np.where(own == v, t, 0.0))
        rows = _draw_from(rows, before, size, keep)
        before += size
    rows = _draw_from(rows, before, n - before, lambda own: 1.0)
    return np.array(weights) @ rows[:, 1:]


def _draw_from(rows: np.ndarray, before: int, size: int, keep: Callable[[int], Any]) -> np.ndarray:
    """The rows after a class of `size` more answers: its part of the drawn ones is hypergeometrically distributed.

    `before` is the number of answers in the classes so far; `keep(own)` is the factor of each row for `own` drawn ones.
    """
    found = np.zeros_like(rows)
    for own in range(size + 1):
        others = np.arange(min(before, rows.shape[1] - 1 - own) + 1)  # drawn from the classes before
        chance = np.exp(
            _log_choices(size, own) + _log_choices(before, others) - _log_choices(before + size, others + own)
        )
        found[:, own : own + len(others)] += (keep(own) * chance) * rows[:, : len(others)]
    return found


def _log_choices(n: int, k: Any) -> Any:
    """The logarithm of the number of ways to choose k of n."""
    logs = _log_factorials(n)
    return logs[n] - logs[k] - logs[n - k]


@functools.cache
def _log_factorials(n: int) -> Float[np.ndarray, "n+1"]:
    """The logarithms of 0!, 1!, ..., n!."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def _count_classes(transcript: Mapping[str, Any], equivalent: Equivalent) -> tuple[int, list[int]]:
    """(number of right answers, sizes of the classes of equivalent wrong answers) of a question."""
    right, classes = 0, []
    for agent in transcript["agents"]:
        answer = agent["answers"][0]
        if answer is None:
            continue
        if equivalent(answer, transcript["gold"]):
            right += 1
            continue
        own = next((members for members in classes if equivalent(members[0], answer)), None)
        if own is None:
            classes.append([answer])
        else:
            own.append(answer)
    return right, [len(members) for members in classes]
