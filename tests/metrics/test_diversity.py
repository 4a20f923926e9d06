import numpy as np
import pytest

from mft_jax.metrics.diversity import (
    consensus,
    consensus_diversity,
    embedding_dissimilarity,
    mean_of_known,
    mean_over_pairs,
)


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


def test_the_mean_over_pairs_leaves_out_the_diagonal_and_agents_without_an_answer():
    values = np.array([[100.0, 2.0, np.nan], [4.0, 100.0, np.nan], [6.0, 8.0, np.nan]])
    assert mean_over_pairs(values) == 5.0
    assert mean_over_pairs(values[:1, :1]) is None
    assert mean_over_pairs(np.full((2, 2), np.nan)) is None


@pytest.mark.parametrize(
    ("embeddings", "expected"),
    [
        ([[1, 0], [0, 3]], 1.0),  # orthogonal
        ([[1, 2], [2, 4], [0.5, 1]], 0.0),  # the same direction
        ([[1, 0], [-2, 0]], 2.0),  # opposite
        ([[1, 0], [0, 1], [1, 1]], (1 + 2 * (1 - 0.5**0.5)) / 3),
        ([[1, 0]], None),
        ([[1, 0], [0, 0]], None),
    ],
)
def test_embedding_dissimilarity(embeddings, expected):
    found = embedding_dissimilarity(np.array(embeddings, np.float32))
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-7))


def test_no_embeddings_have_no_dissimilarity():
    assert embedding_dissimilarity(np.array([])) is None


def test_the_mean_of_known_values():
    assert mean_of_known([1.0, None, 2.0]) == 1.5
    assert mean_of_known([None]) is None
