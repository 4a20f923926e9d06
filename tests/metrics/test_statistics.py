import numpy as np
import pytest
from scipy.stats import binomtest

from mft_jax.metrics.statistics import bootstrap_interval, compare_with_first, holm, paired_test


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


def test_bootstrap_interval_is_that_of_resampled_questions():
    """Compared with an explicit bootstrap of the questions themselves."""
    rng = np.random.default_rng(0)
    first, second = rng.random(200) < 0.7, rng.random(200) < 0.55
    found = bootstrap_interval(list(first), list(second), seed=3)
    drawn = rng.integers(200, size=(20_000, 200))
    differences = (first[drawn].mean(axis=1) - second[drawn].mean(axis=1)).tolist()
    np.testing.assert_allclose([found.low, found.high], np.quantile(differences, [0.025, 0.975]), atol=0.011)
    assert found == bootstrap_interval(list(first), list(second), seed=3)
    assert found != bootstrap_interval(list(first), list(second), seed=4)
    same = bootstrap_interval([True, False], [True, False], seed=0)
    assert (same.low, same.high) == (0, 0)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([], []),
        ([0.02], [0.02]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # p.adjust(..., "holm") of R
        ([0.5, 0.001, 0.5], [1.0, 0.003, 1.0]),
        ([0.04, 0.0], [0.04, 0.0]),
    ],
)
def test_holm(given, corrected):
    assert holm(given) == pytest.approx(corrected)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"got 1\.5"):
        holm([0.1, 1.5])


def test_methods_are_compared_with_the_first_one():
    first = [True] * 4 + [False] * 8 + [None]
    better, same = [True] * 12 + [None], list(first)
    none, against_better, against_same = compare_with_first([first, better, same], seed=0)
    assert none is None
    assert (against_better.n, against_better.only_this, against_better.only_other) == (12, 8, 0)
    assert against_better.difference == pytest.approx(8 / 12)
    assert against_better.low < 8 / 12 < against_better.high <= 1
    assert (against_better.p_value, against_better.p_holm) == (2 / 2**8, 2 * 2 / 2**8)
    assert (against_same.difference, against_same.p_value, against_same.p_holm) == (0, 1, 1)
    assert compare_with_first([[None], [True]], seed=0) == [None, None]
    assert compare_with_first([], seed=0) == []
    with pytest.raises(ValueError, match="zip"):
        compare_with_first([[True], [True, False]], seed=0)
