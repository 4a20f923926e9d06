"""Formulas count as different only if their values certainly differ."""

import pytest

from mft_jax.tasks.formulas import engine, values
from mft_jax.tasks.formulas.evaluation import Point, value


def read(text):
    (formula,) = engine.parse_formula(text)
    return formula


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x+1", "x+2"),
        (r"e^{-7x}(c\cos 4x+d\sin 4x)", r"e^{-7x}(c\cos 3x+d\sin 4x)"),
        ("x", "y"),
        ("f(x)", "f(y)"),
        (r"\frac{1}{3}", "0.33333"),
        (r"\int_0^2 x^3e^{-2x}dx", r"\int_0^2 x^3e^{-3x}dx"),
        (r"\int x\cos x dx", r"\int x\sin x dx"),
        (r"\int x\cos x dx", "5"),
        (r"\sum_{k=1}^n k^2", r"\sum_{k=1}^n k^3"),
        (r"\sum_{n=1}^\infty\frac{1}{n^2}", r"\frac{\pi^2}{7}"),
        (r"\lim_{x\to 0}\frac{\sin 3x}{x}", "2"),
        (r"\frac{d}{dx}x^3", "3x"),
        (r"\binom{n}{9}", r"\binom{n}{8}"),
    ],
)
def test_different_formulas(a, b):
    assert values.differ(read(a), read(b))
    assert values.differ(read(b), read(a))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sin^2 x", r"1-\cos^2 x"),  # the same
        (r"|x|", r"\sqrt{x^2}"),
        (r"\Gamma(n+1)", "n!"),
        (r"\int_0^2 x dx", "2"),
        (r"\int 2x dx", "x^2+3"),  # up to a constant
        (r"\sum_{k=1}^n k", r"\frac{n(n+1)}{2}"),
        (r"\sum_{n=1}^\infty\frac{1}{n^2}", r"\frac{\pi^2}{6}"),
        (r"\lim_{x\to 0}\frac{\sin 3x}{x}", "3"),
        (r"\frac{1}{3}", "0.3333333"),  # to six places
        (r"10^{-20}x", r"2\cdot 10^{-20}x"),  # so small that math-verify takes them for 0
        (r"e^{-40}", r"e^{-41}"),
        (r"\frac{1}{0}", "1"),  # no value
        (r"\sum_{n=1}^\infty n", "1"),
        (r"9^{9^{9^{9}}}", "1"),
        (r"\mathbb{R}", "1"),
    ],
)
def test_formulas_whose_values_do_not_certainly_differ(a, b):
    assert not values.differ(read(a), read(b))
    assert not values.differ(read(b), read(a))


def test_values_that_are_known():
    assert abs(value(read(r"\int_0^\infty e^{-x}x^4 dx"), Point(0)) - 24) < 1e-10
    assert abs(value(read(r"e^{\frac{1}{2}}\sqrt{2}"), Point(0)) - 2.3316439815971242) < 1e-14
