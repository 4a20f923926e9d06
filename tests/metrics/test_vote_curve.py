import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest

from mft_jax.metrics.vote_curve import VotePoint, chances_of_right_vote, vote_curve

EQUAL = lambda a, b: a.lower() == b.lower()


def chance_by_enumeration(answers, k):
    """Goes through all choices of k answers; "x" is right, None is missing."""
    chances = []
    for chosen in itertools.combinations(answers, k):
        votes = [answer for answer in chosen if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        winners = {answer for answer in votes if votes.count(answer) == most}
        chances.append(("x" in winners) / max(1, len(winners)))
    return statistics.mean(chances)


@pytest.mark.parametrize("answers", ["xxxyy", "xxyyzz", "xyyz", "xxyz--", "yyy", "---", "xxxxxx", "x-", "xyzuvw"])
def test_the_chance_is_that_of_all_choices(answers):
    given = [None if answer == "-" else answer for answer in answers]
    wrong = [given.count(answer) for answer in sorted(set(answers) - {"x", "-"})]
    found = chances_of_right_vote(given.count("x"), wrong, len(given))
    assert found == pytest.approx([chance_by_enumeration(given, k) for k in range(1, len(given) + 1)], abs=1e-12)


def test_the_chances_of_votes_over_hundreds_of_answers():
    """With two classes the chances follow from a hypergeometric distribution: half the answers plus half of the ties."""
    n, right = 300, 160
    found = chances_of_right_vote(right, [n - right], n)
    for k in (1, 2, 3, 100, 299, 300):
        drawn = [Fraction(math.comb(right, v) * math.comb(n - right, k - v), math.comb(n, k)) for v in range(k + 1)]
        expected = sum(p for v, p in enumerate(drawn) if 2 * v > k) + sum(drawn[k // 2 : k // 2 + 1]) / 2 * (k % 2 == 0)
        assert found[k - 1] == pytest.approx(float(expected), abs=1e-11)
    crowded = chances_of_right_vote(40, [30, 30, 20, 20, *[1] * 100], 300)  # 60 answers are missing
    assert crowded[0] == pytest.approx(40 / 300)
    assert crowded[-1] == pytest.approx(1)
    assert np.all((crowded > 0) & (crowded < 1 + 1e-9))


def test_the_curve_of_several_questions():
    line = lambda answers, gold="x": {"gold": gold, "agents": [{"answers": [answer]} for answer in answers]}
    lines = [line(["X", "x", "y"]), line(["y", "Y", "x"]), line([None, "x", "x"]), line(["a", "b", "c"], gold=None)]
    one, two, three = vote_curve(lines, EQUAL, flops=900)
    assert (one.k, one.accuracy, one.flops) == (1, pytest.approx((2 + 1 + 2) / 9), 300)
    assert (two.k, two.accuracy) == (2, pytest.approx((2 / 3 + 1 / 3 + 1) / 3))
    stderr = statistics.pstdev([1, 0, 1]) / 3**0.5
    assert three == VotePoint(k=3, accuracy=pytest.approx(2 / 3), stderr=pytest.approx(stderr), flops=900)
    assert vote_curve([line(["x"])], EQUAL, flops=1) is None
    assert vote_curve([line(["x", "y"], gold=None)], EQUAL, flops=1) is None
