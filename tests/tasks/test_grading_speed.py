"""Grading must cost little beside sampling: an answer takes a model seconds, its grade should take milliseconds."""

import time

import pytest

from mft_jax.tasks.answers import equivalent
from mft_jax.tasks.parsing import parse_expression


def mix(number):
    """(answer as sampled, gold, whether it is right): what MATH's answers are, half of them numbers; no two alike."""
    a, b = number + 2, number % 7 + 2
    kinds = [
        (f"{a}", f"{a}", True),
        (f"{a:,}", f"{a + 1}", False),
        (rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}", True),
        (f"{a}.50", rf"\frac{{{2 * a + 1}}}{{2}}", True),
        (rf"{a} \text{{ inches}}", f"{a}", True),
        (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", True),
        (rf"{a}x^2+{b}x", rf"x({a}x+{b})", True),
        (rf"(-\infty,{a}]", rf"(-\infty,{a + 1}]", False),
        (rf"({a},{b})", rf"({a},{b}.0)", True),
        (rf"{a}\pi", rf"{a}\pi", True),
        (rf"x={a}, {b}", f"{a}", False),
        (r"\text{even}", r"\text{odd}", False),
    ]
    return kinds[number % len(kinds)]


@pytest.mark.slow
def test_three_thousand_answers():
    answers = [(rf"Some steps, $y=3$, and so \boxed{{{answer}}}.", gold, right)
               for answer, gold, right in map(mix, range(3000))]  # fmt: skip
    equivalent("y+1", "1+y")  # the process is running
    start = time.perf_counter()
    wrong = [item for item in answers if equivalent(parse_expression(item[0]) or "", item[1]) != item[2]]
    seconds = time.perf_counter() - start
    print(f"{len(answers)} answers in {seconds:.1f} s, {1000 * seconds / len(answers):.1f} ms each")
    assert wrong == []
    assert seconds < 60  # a tenth of that on an idle machine
