"""The grading process gives the same verdicts as math-verify without the faster steps."""

import json
import subprocess
import sys
import textwrap

import pytest

from mft_jax.tasks import grader
from tests.tasks.pairs import COLLEGE, COMPETITION, make_pairs

# (a, b, whether math-verify finds them equal); some of its verdicts are mathematically wrong.
STRANGE = [
    (r"x^2+1=0", r"x^2+2=0", True),  # neither has a real solution
    (r"x^2+y^2=-1", r"x^2+y^2=-4", True),
    (r"x^2+y^2=1", r"x^2+y^2=4", False),
    (r"y_1=\sqrt{-2}", r"y_1=\sqrt{-3}", True),
    (r"f(x)=x^2", r"f(x)=x^3", False),
    (r"f(x)=x^2", r"x^2", True),
    (r"2x+y=3", r"4x+2y=6", True),
    (r"x=2y", r"\frac{x}{y}=2", True),
    (r"x>3", r"(3,\infty)", True),
    (r"x+y<2", r"2x+2y<4", False),
    (r"\{0.333333,1\}", r"\{1,\frac13\}", True),
    (r"10^{-20}", r"2\cdot10^{-20}", True),
    (r"0.333333x", r"\frac{x}{3}", False),
    (r"(1,2),(3,4)", r"(3,4),(1,2)", True),
    (r"e^{2t}\begin{pmatrix}4\\2\end{pmatrix}", r"\begin{pmatrix}4e^{2t}\\2e^{2t}\end{pmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
    # Decimals are rounded only if all entries are equal without algebra.
    (r"\begin{pmatrix}0.333333\\x(x+1)\end{pmatrix}", r"\begin{pmatrix}\frac{1}{3}\\x^2+x\end{pmatrix}", False),
    (r"\begin{pmatrix}0.333333\\x^2+x\end{pmatrix}", r"\begin{pmatrix}\frac{1}{3}\\x^2+x\end{pmatrix}", True),
    (r"x^2_1+x_2", r"x_2+x_1^2", True),
    (r"\int x^2 dx", r"\frac{x^3}{3}", True),
]

ALONE = """
    import json, logging, sys
    from math_verify import parse, verify
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        left, right = (
            parse(rf"\\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=0) for text in json.loads(line)
        )
        print(any(verify(a, b, timeout_seconds=None) for a, b in ((left, right), (right, left))), flush=True)
"""


def verdicts_alone(pairs):
    """The verdicts of math-verify without `mft_jax` and without a time limit."""
    code = textwrap.dedent(ALONE)
    lines = "".join(json.dumps(sorted(pair)) + "\n" for pair in pairs)
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True)
    return [line == "True" for line in done.stdout.split()]


@pytest.mark.parametrize(("a", "b", "same"), STRANGE)
def test_strange_verdicts_are_kept(a, b, same):
    assert grader.same_formula(*sorted((a, b)), cpu_seconds=5) is same


@pytest.mark.slow
def test_strange_verdicts_are_those_of_math_verify_alone():
    assert verdicts_alone([(a, b) for a, b, _ in STRANGE]) == [same for *_, same in STRANGE]


@pytest.mark.slow
@pytest.mark.parametrize(("templates", "number"), [(COMPETITION, 400), (COLLEGE[:1] + COLLEGE[22:70], 60)])
def test_many_pairs(templates, number):
    """Without the templates of COLLEGE for which math-verify alone takes minutes."""
    pairs = make_pairs(templates, number, seed=11)
    found = [grader.same_formula(*sorted(pair), cpu_seconds=20) for pair in pairs]
    alone = verdicts_alone(pairs)
    assert [pair for pair, *both in zip(pairs, found, alone, strict=True) if both[0] != both[1]] == []
    assert 0 < sum(found) < number
