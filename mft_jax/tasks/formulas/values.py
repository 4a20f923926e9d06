"""Compares two formulas by their values at random points, without algebra."""

import functools
from collections.abc import Iterable

import sympy

from .evaluation import Point, UnreliableError, Value, is_variable, value

POINTS = 3  # the number of points at which two formulas have to differ
CANDIDATES = 9  # the number of points that are tried
# Values are different if they are further apart than an absolute distance plus a share of their size.
OF_VARIABLES = 1e-28, 1e-20
OF_CONSTANTS = 1e-10, 1e-20  # math-verify also compares constants numerically
OF_DECIMALS = 2e-6, 1e-9  # math-verify rounds decimals to 6 places; also for approximated values


def differ(a: sympy.Basic, b: sympy.Basic) -> bool:
    """Whether two formulas certainly differ at random points. False does not mean that they are equal."""
    variables = _integration_variables(a) | _integration_variables(b)
    if variables:  # antiderivatives are equal up to a constant, so their derivatives are compared
        a, b = (functools.reduce(_derivative, sorted(variables, key=str), formula) for formula in (a, b))
    return mostly_differ(
        ((_reliable_value(a, number), _reliable_value(b, number)) for number in range(CANDIDATES)),
        _least_distance(a, b),
    )


def mostly_differ(pairs: Iterable[tuple[Value | None, Value | None]], least: tuple[float, float]) -> bool:
    """Whether the values of POINTS pairs differ before those of POINTS other pairs agree.

    Different formulas may agree at a few points by chance. A pair that contains None is not counted. Neither is a pair
    of zeros, which says little: the integer parts of x/20 and x/30 are 0 at many points.
    """
    counts = {True: 0, False: 0}
    for left, right in pairs:
        if left is not None and right is not None and not left == right == 0:
            counts[_are_apart(left, right, least)] += 1
            if max(counts.values()) == POINTS:
                break
    return counts[True] == POINTS


def has_reliable_value(formula: sympy.Basic) -> bool:
    """Whether a formula has a reliable value at the first point."""
    return _reliable_value(formula, 0) is not None


def _least_distance(a: sympy.Basic, b: sympy.Basic) -> tuple[float, float]:
    if _is_inexact(a) or _is_inexact(b):
        return OF_DECIMALS
    return OF_VARIABLES if is_variable(a) or is_variable(b) else OF_CONSTANTS


@functools.lru_cache(maxsize=4096)
def _integration_variables(formula: sympy.Basic) -> frozenset[sympy.Symbol]:
    """The variables of the integrals without bounds."""
    integrals = formula.atoms(sympy.Integral) if formula.has(sympy.Integral) else ()
    return frozenset(limit[0] for integral in integrals for limit in integral.limits if len(limit) == 1)


@functools.lru_cache(maxsize=4096)
def _is_inexact(formula: sympy.Basic) -> bool:
    return formula.has(sympy.Float, sympy.Sum, sympy.Integral, sympy.Limit)


@functools.lru_cache(maxsize=4096)
def _derivative(formula: sympy.Expr, variable: sympy.Symbol) -> sympy.Expr:
    return formula.diff(variable)


def _reliable_value(formula: sympy.Basic, number: int) -> Value | None:
    """The value at the point with this number; None if it is not reliable."""
    return _value_at(formula, number if is_variable(formula) else 0)


@functools.lru_cache(maxsize=16384)
def _value_at(formula: sympy.Basic, number: int) -> Value | None:
    try:
        return value(formula, Point(number))
    except UnreliableError:
        return None


def _are_apart(a: Value, b: Value, least: tuple[float, float]) -> bool:
    absolute, relative = least
    return abs(a - b) > absolute + relative * (abs(a) + abs(b))
