"""Whether two equations have different solutions, by evaluating one on the solutions of the other.

math-verify finds two equations equal if SymPy solves both for the same symbols with the same results, or finds that
neither has a solution. So they are different if one of them has real solutions which do not satisfy the other.
"""

import functools
import random

import sympy
from sympy.core.function import AppliedUndef

from .values import CANDIDATES, LEAST_DISTANCE_OF_DECIMALS, Point, UnclearError, differ_mostly, value


def differ(a, b):
    """Whether it is certain that SymPy's solutions of two relations are not the same."""
    if not (isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq)):
        return True  # the solutions of an inequality are no list, which is all that math-verify can compare
    return _excludes(a, b) or _excludes(b, a) or _coprime(a, b)


def _excludes(a, b):
    """Whether `a` is an equation for a symbol or a function, with real values that do not satisfy `b`."""
    return any(
        differ_mostly(_sides(b, unknown, solution), LEAST_DISTANCE_OF_DECIMALS)
        for unknown, solution in _explicit_solutions(a)
    )


def _sides(equation, unknown, solution):
    """The values of both sides where the unknown has that of a solution, at random points."""
    for number in range(CANDIDATES):
        try:
            found = value(solution, Point(number))
            if found.imag == 0:
                point = Point(number, {unknown: found})
                yield value(equation.lhs, point), value(equation.rhs, point)
        except UnclearError:
            continue


@functools.lru_cache(maxsize=1024)
def _explicit_solutions(equation):
    """(unknown, its value) for each unknown that stands once in an equation, alone or with a number as a factor."""
    terms = [*sympy.Add.make_args(equation.lhs), *(-term for term in sympy.Add.make_args(equation.rhs))]
    found = []
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
                found.append((unknown, -sympy.Add(*others) / factor))
    return tuple(found)


def _coprime(a, b):
    """Whether both are polynomial equations without a common factor, and one of them has real solutions."""
    first, second = _polynomial(a), _polynomial(b)
    if first is None or second is None or not first.gcd(second).is_ground:
        return False
    return any(map(_changes_sign, (first, second)))


@functools.lru_cache(maxsize=1024)
def _polynomial(equation):
    """Its left side minus its right side, with rational coefficients; None where it is no polynomial in real symbols."""
    symbols = sorted(equation.free_symbols, key=str)
    if not symbols or not all(symbol.is_real for symbol in symbols):
        return None
    try:
        return sympy.Poly(equation.lhs - equation.rhs, *symbols, domain=sympy.QQ)
    except (sympy.PolynomialError, sympy.CoercionFailed):
        return None


def _changes_sign(polynomial):
    """Whether it is positive at one point and negative at another; so it is 0 between them."""
    rng = random.Random(0)
    points = [[0] * len(polynomial.gens), [100] * len(polynomial.gens)]
    points += [[rng.randint(-12, 12) for _ in polynomial.gens] for _ in range(30)]
    return {-1, 1} <= {sympy.sign(polynomial(*point)) for point in points}
