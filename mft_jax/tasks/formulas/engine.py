"""Runs math-verify with faster replacements for its slowest steps, which give the same results.

Nearly all of its time is spent in four steps. Each replacement tries something cheaper first:
- Parsing: ANTLR's prediction with full context. `parser` uses it only for formulas that need it.
- Comparing two expressions: SymPy's `simplify`. It is skipped if the two have different values at random points.
- Comparing two sets: SymPy's set algebra. It is skipped if one of the sets has an element that is not in the other.
- Comparing two equations: SymPy's `solve`. It is skipped if a solution of one does not satisfy the other.
"""

import functools

import sympy
from math_verify import grader, parse, verify

from . import equations, parser, values
from .samples import SAMPLES

_numeric_eq = grader.sympy_numeric_eq
_symbolic_eq = grader.sympy_symbolic_eq
_compare_sets = grader.sympy_compare_sets
_solve_and_compare = grader.sympy_solve_and_compare


def install():
    """Replaces the slow steps of math-verify in this process."""
    parser.install()
    steps = {
        "sympy_numeric_eq": numeric_eq,
        "sympy_symbolic_eq": symbolic_eq,
        "sympy_compare_sets": compare_sets,
        "sympy_solve_and_compare": solve_and_compare,
    }
    for name, step in steps.items():
        setattr(grader, name, step)


def same_formula(a, b):
    """Whether math-verify finds two formulas equal, with either one as the gold answer."""
    # verify is not symmetric: it treats an assignment differently in the gold answer and in the candidate.
    left, right = parse_formula(a), parse_formula(b)
    return any(verify(gold, target, timeout_seconds=None) for gold, target in ((left, right), (right, left)))


@functools.lru_cache(maxsize=4096)
def parse_formula(text):
    """math-verify's readings of a formula as SymPy objects; [] if it cannot read it."""
    # The box tells the parser that the whole text is the answer. grader_worker.py sets the time limit.
    return parse(rf"\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=0)


def warm_up():
    """Parses the samples and calls `simplify`, so that the first comparisons do not take longer than later ones.

    Parsing fills the caches of ANTLR, and the first call of `simplify` imports more of SymPy.
    """
    for text in SAMPLES:
        parse_formula(text)
    same_formula(r"\sin^2 x", r"1-\cos^2 x")


def numeric_eq(a, b, *precision):
    """Replaces `sympy_numeric_eq`: whether two expressions or matrices have the same value, after rounding."""
    percent = any(grader.get_pct_val(formula) is not None for formula in (a, b))  # math-verify accepts 9 for 9%
    if not percent and are_expressions(a, b) and _certain(values.differ, a, b):
        return False
    return _numeric_eq(a, b, *precision)


def symbolic_eq(a, b):
    """Replaces `sympy_symbolic_eq`: whether the difference of two expressions or matrices simplifies to zero."""
    if are_expressions(a, b):
        return not _certain(values.differ, a, b) and (_certain(expands_to_zero, a, b) or _symbolic_eq(a, b))
    return not _certain(matrices_differ, a, b) and _symbolic_eq(a, b)


def compare_sets(gold, target, *precision):
    """Replaces `sympy_compare_sets`: whether two sets, tuples or expressions have the same elements."""
    first, second = (
        formula if isinstance(formula, (sympy.Set, sympy.Tuple)) else sympy.FiniteSet(formula)
        for formula in (gold, target)
    )
    if not _certain(sets_differ, first, second):
        return _compare_sets(gold, target, *precision)
    # math-verify also compares the elements in order, for which it treats an open interval (1, 2) as a point.
    left, right = (_as_point(first, second), _as_point(second, first))
    points = (sympy.FiniteSet, sympy.Tuple)
    if not (isinstance(left, points) and isinstance(right, points)):
        return False
    return grader.sympy_deep_compare_set_and_tuple(left, right, *precision)


def solve_and_compare(gold, target, *precision):
    """Replaces `sympy_solve_and_compare`: whether two equations have the same solutions."""
    return not _certain(equations.differ, gold, target) and _solve_and_compare(gold, target, *precision)


def are_expressions(a, b):
    """Whether both are scalar expressions."""
    return all(isinstance(formula, sympy.Expr) and not isinstance(formula, sympy.MatrixExpr) for formula in (a, b))


def expands_to_zero(a, b):
    """Whether two expressions have values and their difference expands to 0. Then it simplifies to 0 too."""
    return values.has_reliable_value(a) and values.has_reliable_value(b) and sympy.expand(a - b) == 0


def matrices_differ(a, b):
    """Whether two matrices certainly have different shapes or a different entry."""
    if not all(isinstance(formula, (sympy.MatrixBase, sympy.MatrixExpr)) for formula in (a, b)):
        return False
    # Raises an error for a matrix without explicit entries, e.g. a symbol.
    a, b = (grader.safe_sympy_doit(formula).as_explicit() for formula in (a, b))
    return a.shape != b.shape or any(map(values.differ, a.flat(), b.flat()))


def sets_differ(first, second):
    """Whether two sets are certainly different: two finite sets, or a finite set and one that contains an interval."""
    finite = [isinstance(own, sympy.FiniteSet) for own in (first, second)]
    if all(finite):
        return _has_other_element(first, second) or _has_other_element(second, first)
    return any(finite) and (_contains_interval(first) or _contains_interval(second))


def _has_other_element(own, other):
    """Whether a finite set certainly has an element that is not in the other."""
    return any(all(values.differ(element, present) for present in other.args) for element in own.args)


def _contains_interval(own):
    parts = own.args if isinstance(own, sympy.Union) else (own,)
    return any(isinstance(part, sympy.Interval) for part in parts)


def _as_point(own, other):
    """The point (a, b) for an open interval that is compared with two elements; otherwise the set itself."""
    is_point = isinstance(own, sympy.Interval) and own.is_open and len(other) == 2
    return sympy.Tuple(own.start, own.end) if is_point else own


def _certain(test, a, b):
    """Whether a test proves its statement about `a` and `b`. If it raises an error, math-verify has to decide."""
    try:
        return test(a, b)
    except Exception:
        return False
