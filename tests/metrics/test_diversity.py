import pytest

from mft_jax.metrics.diversity import consensus, consensus_diversity


def same_number(a: str, b: str) -> bool:
    return float(a) == float(b)


def test_consensus_is_the_mean_share_of_answers_equivalent_to_the_vote():
    answers = [["7", "7.0", "8"], ["1", None, "2"], [None, None, None]]
    votes = ["7", "1", None]
    assert consensus(answers, votes, same_number) == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert consensus_diversity(answers, votes, same_number) == {
        "consensus": pytest.approx(1 / 3),
        "diversity": pytest.approx(2 / 3),
    }


def test_a_society_that_always_agrees_has_no_diversity():
    assert consensus_diversity([["4", "4"]] * 3, ["4"] * 3, same_number) == {"consensus": 1.0, "diversity": 0.0}


def test_each_question_needs_a_vote():
    with pytest.raises(ValueError, match="1 questions and 2 votes"):
        consensus([["1"]], ["1", "2"], same_number)
