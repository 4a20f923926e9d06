import math

import pytest
from scipy.stats import binomtest

from mft_jax.metrics.accuracy import accuracy, paired_test


def test_accuracy_and_its_standard_error():
    score = accuracy([True, True, True, False])
    assert (score.n, score.value) == (4, 0.75)
    assert score.stderr == math.sqrt(0.75 * 0.25 / 4)
    assert accuracy([True, True]).stderr == 0.0
    with pytest.raises(ValueError, match="got none"):
        accuracy([])


@pytest.mark.parametrize(
    ("both", "first", "second", "neither"), [(5, 9, 1, 3), (0, 4, 4, 0), (7, 0, 0, 7), (2, 3, 40, 1)]
)
def test_paired_test_is_the_exact_binomial_on_the_questions_that_differ(both, first, second, neither):
    a = [True] * both + [True] * first + [False] * second + [False] * neither
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    result = paired_test(a, b)
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert (result.only_first, result.only_second) == (first, second)
    assert result.difference == pytest.approx(sum(a) / len(a) - sum(b) / len(b))


def test_paired_test_of_many_questions_neither_overflows_nor_rounds_to_zero():
    assert 0 < paired_test([True] * 1000 + [False] * 10, [False] * 1000 + [True] * 10).p_value < 1e-200


def test_paired_test_needs_lists_of_the_same_length():
    with pytest.raises(ValueError, match="2 and 1"):
        paired_test([True, False], [True])
