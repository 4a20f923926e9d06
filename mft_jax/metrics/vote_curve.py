"""The accuracy of a majority vote over k independent answers, for every k, from one set of N answers per question."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    counted = [_count_classes(line, equivalent) for line in known]
    points = []
    for k in range(1, agents + 1):
        chances = [chance_of_right_vote(right, wrong, agents, k) for right, wrong in counted]
        mean = sum(chances) / len(chances)
        variance = sum((chance - mean) ** 2 for chance in chances) / len(chances)
        error = math.sqrt(variance / len(chances))
        points.append(VotePoint(k=k, accuracy=mean, stderr=error, flops=flops * k // agents))
    return tuple(points)


def chance_of_right_vote(right: int, wrong: Sequence[int], n: int, k: int) -> float:
    """The probability that the right answer wins a majority vote over k of n answers, drawn without replacement.

    `right` answers are right, and `wrong` are the sizes of the classes of equal wrong answers; the remaining answers are
    missing and have no vote. Ties are broken uniformly at random. Computed exactly by counting choices.
    """
    missing = n - right - sum(wrong)
    favourable = 0.0
    for votes in range(1, min(right, k) + 1):
        ways = {(votes, 0): math.comb(right, votes)}  # (answers chosen, wrong classes with as many votes) -> choices
        for size in wrong:
            ways = _choose(ways, size, limit=min(size, votes), tie_at=votes, k=k)
        ways = _choose(ways, missing, limit=missing, tie_at=None, k=k)
        favourable += sum(count / (1 + ties) for (chosen, ties), count in ways.items() if chosen == k)
    return favourable / math.comb(n, k)


def _choose(
    ways: Mapping[tuple[int, int], int], size: int, *, limit: int, tie_at: int | None, k: int
) -> dict[tuple[int, int], int]:
    """The choices after up to `limit` answers of a class of `size` answers are chosen too."""
    after: dict[tuple[int, int], int] = {}
    for (chosen, ties), count in ways.items():
        for own in range(min(limit, k - chosen) + 1):
            key = (chosen + own, ties + (own == tie_at))
            after[key] = after.get(key, 0) + count * math.comb(size, own)
    return after


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
