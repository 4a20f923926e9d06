"""math-verify, made fast without a change of its answers.

Three of its steps take nearly all the time. Each is replaced in it by one that first tries something much cheaper:
- Parsing: ANTLR's full grammar analysis, which only the formulas need that its simple one cannot read.
- Comparing two expressions: SymPy's `simplify`, which cannot find expressions with clearly different values equal.
- Comparing two equations: SymPy's `solve`, whose solutions of one cannot satisfy the other where their values say so.
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


def same_formula(a, b):
    """Whether math-verify finds two formulas equal, either one as the right answer."""
    # verify is not symmetric: it reads an assignment differently as the right answer and as the candidate.
    left, right = parse_formula(a), parse_formula(b)
    return any(verify(gold, target, timeout_seconds=None) for gold, target in ((left, right), (right, left)))


@functools.lru_cache(maxsize=4096)
def parse_formula(text):
    # The box tells the parser that all of the text is the answer. It has no time limit of its own: see grader_worker.py.
    return parse(rf"\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=0)


def warm_up():
    """Reads formulas of many kinds: the parser learns its grammar by reading, and a fork of this process knows it then."""
    for text in SAMPLES:
        parse_formula(text)
    same_formula("x+1", "1+x")


def numeric_eq(a, b, *precision):
    percent = any(grader.get_pct_val(formula) is not None for formula in (a, b))  # with a percent sign, 9% is 9
    if percent or not are_expressions(a, b):
        return _numeric_eq(a, b, *precision)
    return not values.differ(a, b) and (expands_to_zero(a, b) or _numeric_eq(a, b, *precision))


def symbolic_eq(a, b):
    different = values.differ if are_expressions(a, b) else different_matrices
    return not different(a, b) and _symbolic_eq(a, b)


def are_expressions(a, b):
    """Whether neither is a matrix, nor anything else."""
    return all(isinstance(formula, sympy.Expr) and not isinstance(formula, sympy.MatrixExpr) for formula in (a, b))


def expands_to_zero(a, b):
    """Whether an expansion shows that two formulas are the same; then SymPy's simplification does so too."""
    return values.is_clear(a) and values.is_clear(b) and sympy.expand(a - b) == 0


def different_matrices(a, b):
    if not all(isinstance(formula, (sympy.MatrixBase, sympy.MatrixExpr)) for formula in (a, b)):
        return False
    a, b = (grader.safe_sympy_doit(formula) for formula in (a, b))
    if not all(isinstance(formula, sympy.MatrixBase) for formula in (a, b)):
        return False
    return a.shape != b.shape or any(map(values.differ, a.flat(), b.flat()))


def compare_sets(gold, target, *precision):
    first, second = (
        formula if isinstance(formula, (sympy.Set, sympy.Tuple)) else sympy.FiniteSet(formula)
        for formula in (gold, target)
    )
    if not different_sets(first, second):
        return _compare_sets(gold, target, *precision)
    # Left of math-verify's comparison is that of the elements; (1, 2), which it reads as an interval, may be a point.
    left, right = (_as_point(first, second), _as_point(second, first))
    points = (sympy.FiniteSet, sympy.Tuple)
    if not (isinstance(left, points) and isinstance(right, points)):
        return False
    return grader.sympy_deep_compare_set_and_tuple(left, right, *precision)


def different_sets(first, second):
    """Whether two sets are certainly different, neither both intervals nor a tuple among them."""
    kinds = [isinstance(found, sympy.FiniteSet) for found in (first, second)]
    if all(kinds):
        return _has_more(first, second) or _has_more(second, first)
    return any(kinds) and (_is_infinite(first) or _is_infinite(second))


def _has_more(first, second):
    return any(all(values.differ(element, other) for other in second.args) for element in first.args)


def _is_infinite(found):
    return isinstance(found, sympy.Interval) or isinstance(found, sympy.Union) and any(map(_is_infinite, found.args))


def _as_point(found, other):
    is_point = isinstance(found, sympy.Interval) and found.is_open and len(other) == 2
    return sympy.Tuple(found.start, found.end) if is_point else found


def solve_and_compare(gold, target, *precision):
    return not equations.differ(gold, target) and _solve_and_compare(gold, target, *precision)


parser.install()
grader.sympy_numeric_eq = numeric_eq
grader.sympy_symbolic_eq = symbolic_eq
grader.sympy_compare_sets = compare_sets
grader.sympy_solve_and_compare = solve_and_compare
