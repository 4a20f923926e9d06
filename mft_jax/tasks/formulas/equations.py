"""Tests whether two equations certainly have different solutions, without solving them.

math-verify finds two equations equal if SymPy finds the same solutions for both, or none for both. So they are
different if one of them has a real solution that does not satisfy the other.
"""

import functools
import math
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from .evaluation import Point, UnreliableError, uniform, value
from .values import CANDIDATES, OF_DECIMALS, mostly_differ

LARGEST_COORDINATE = 12  # of the points at which the signs of polynomials are compared
SIGN_POINTS = 30  # the number of these points


def differ(a, b):
    """Whether SymPy's solutions of two equations or inequalities certainly differ."""
    if not (isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq)):
        return True  # for an inequality SymPy returns no list of solutions, and math-verify compares only lists
    return _has_other_solution(a, b) or _has_other_solution(b, a) or _have_no_common_factor(a, b)


def _has_other_solution(a, b):
    """Whether `a` is solved for one unknown, e.g. y = x^2, and its solutions do not satisfy `b`."""
    return any(mostly_differ(_sides(b, unknown, solution), OF_DECIMALS) for unknown, solution in _explicit_solutions(a))


def _sides(equation, unknown, solution):
    """Yields the values of both sides at random points, with the solution as the value of the unknown."""
    for number in range(CANDIDATES):
        try:
            solved = value(solution, Point(number))
            if solved.imag == 0:
                point = Point(number, {unknown: solved})
                yield value(equation.lhs, point), value(equation.rhs, point)
        except UnreliableError:
            continue


@functools.lru_cache(maxsize=1024)
def _explicit_solutions(equation):
    """(unknown, solution) for each unknown that occurs in one term only, alone or with a number as its factor."""
    terms = [*sympy.Add.make_args(equation.lhs), *(-term for term in sympy.Add.make_args(equation.rhs))]
    solutions = []
    for index, term in enumerate(terms):
        for unknown in term.atoms(sympy.Symbol, AppliedUndef):
            others = terms[:index] + terms[index + 1 :]
            factor = term / unknown
            if (
                factor.is_Rational
                and factor != 0
                and (unknown.is_real or isinstance(unknown, AppliedUndef))
                and not any(other.has(unknown) for other in others)
            ):
                solutions.append((unknown, -sympy.Add(*others) / factor))
    return tuple(solutions)


def _have_no_common_factor(a, b):
    """Whether both are polynomial equations without a common factor, and one of them certainly has real solutions.

    A polynomial that changes its sign is 0 on a whole surface between, and two polynomials without a common factor are
    both 0 in a smaller set only. So some solutions of one equation do not satisfy the other.
    """
    first, second = _polynomial(a), _polynomial(b)
    if first is None or second is None or not first.gcd(second).is_ground:
        return False
    return any(map(_changes_sign, (first, second)))


@functools.lru_cache(maxsize=1024)
def _polynomial(equation):
    """The left side minus the right side, with rational coefficients; None if it is no polynomial in real symbols."""
    symbols: list[Any] = sorted(equation.free_symbols, key=str)
    if not symbols or not all(symbol.is_real for symbol in symbols):
        return None
    try:
        return sympy.Poly(equation.lhs - equation.rhs, *symbols, domain=sympy.QQ)
    except (sympy.PolynomialError, sympy.CoercionFailed):
        return None


def _changes_sign(polynomial):
    """Whether a polynomial is positive at one point and negative at another. Then it is 0 somewhere between them."""
    variables = range(len(polynomial.gens))
    points = [[0 for _ in variables], [100 for _ in variables]]
    bounds = -LARGEST_COORDINATE, LARGEST_COORDINATE + 1
    points += [[math.floor(uniform(*bounds, number, k)) for k in variables] for number in range(SIGN_POINTS)]
    return {-1, 1} <= {sympy.sign(polynomial(*point)) for point in points}
