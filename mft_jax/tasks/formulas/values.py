"""Values of formulas at fixed random points: formulas whose values differ clearly are different, without any algebra.

A value counts only where it is beyond doubt. Anything else (a function not known here, a value so small that math-verify
takes it for zero, one beside a branch cut, where rounding decides the sign) is an UnclearError.
"""

import functools
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import mpmath
import sympy
from sympy.core.function import AppliedUndef

POINTS = 3  # at which two formulas have to differ
CANDIDATES = 9  # for these points
DIGITS = 50
SMALLEST, LARGEST = 1e-13, 1e300  # of the absolute value of each part of a formula that is not 0
LARGEST_ARGUMENT = 1e20  # of a function: the sine of a larger number has few digits
LEAST_SUM = 1e-25  # as a share of its largest term: a smaller one has few digits
LEAST_DISTANCE = 1e-10, 1e-20  # of different values, and as a share of them
LEAST_DISTANCE_OF_DECIMALS = 2e-6, 1e-9  # math-verify rounds them to 6 places; also of values that are approximated
LARGEST_APPROXIMATE = 1000.0  # of the absolute value of a limit, a sum or an integral that is approximated
MAX_TERMS = 40  # of a sum or product

_mp: Any = mpmath.MPContext()
_mp.dps = DIGITS

Value = Any  # a real or complex number of mpmath


class UnclearError(Exception):
    """A formula has no value that could be relied on."""


class Point(NamedTuple):
    """Where formulas are evaluated."""

    number: int
    prescribed: dict[sympy.Basic, Value] = {}  # the values of some symbols and functions; those of others are random
    inner: bool = False  # whether the value is part of a limit, a sum or an integral, and may be of any size


def differ(a: sympy.Basic, b: sympy.Basic) -> bool:
    """Whether two formulas have clearly different values at random points. False says nothing."""
    variables = _integration_variables(a) | _integration_variables(b)
    if variables:  # antiderivatives are compared by their derivatives
        a, b = (functools.reduce(_derivative, sorted(variables, key=str), formula) for formula in (a, b))
    return differ_mostly(
        ((_clear_value(a, number), _clear_value(b, number)) for number in range(CANDIDATES)),
        LEAST_DISTANCE_OF_DECIMALS if _is_inexact(a) or _is_inexact(b) else LEAST_DISTANCE,
    )


def differ_mostly(pairs: Iterable[tuple[Value | None, Value | None]], least: tuple[float, float]) -> bool:
    """Whether of the first pairs of clear values, several differ; a few that agree may do so by chance."""
    counts = {True: 0, False: 0}
    for left, right in pairs:
        if left is not None and right is not None and not left == right == 0:
            counts[_far(left, right, least)] += 1
            if max(counts.values()) == POINTS:
                break
    return counts[True] == POINTS


def is_clear(formula: sympy.Basic) -> bool:
    """Whether a formula has a clear value at the first point."""
    return _clear_value(formula, 0) is not None


@functools.lru_cache(maxsize=4096)
def _integration_variables(formula: sympy.Basic) -> frozenset[sympy.Symbol]:
    """Of its integrals without bounds."""
    integrals = formula.atoms(sympy.Integral) if formula.has(sympy.Integral) else ()
    return frozenset(limit[0] for integral in integrals for limit in integral.limits if len(limit) == 1)


@functools.lru_cache(maxsize=4096)
def _is_inexact(formula: sympy.Basic) -> bool:
    return formula.has(sympy.Float, sympy.Sum, sympy.Integral, sympy.Limit)


@functools.lru_cache(maxsize=4096)
def _derivative(formula: sympy.Expr, variable: sympy.Symbol) -> sympy.Expr:
    return formula.diff(variable)


def _clear_value(formula: sympy.Basic, number: int) -> Value | None:
    return _value_at(formula, number if _is_variable(formula) else 0)


@functools.lru_cache(maxsize=4096)
def _is_variable(formula: sympy.Basic) -> bool:
    return bool(formula.free_symbols) or formula.has(AppliedUndef)


@functools.lru_cache(maxsize=16384)
def _value_at(formula: sympy.Basic, number: int) -> Value | None:
    try:
        return value(formula, Point(number))
    except UnclearError:
        return None


def value(formula: sympy.Basic, point: Point) -> Value:
    """The value at a point. Raises UnclearError."""
    if point.prescribed and formula in point.prescribed:
        return point.prescribed[formula]
    try:
        found = _evaluate(formula, point)
        return found if point.inner else _checked(found)
    except (ArithmeticError, ValueError, TypeError, NotImplementedError) as error:  # a pole, or no number at all
        raise UnclearError from error


def _far(a: Value, b: Value, least: tuple[float, float]) -> bool:
    absolute, relative = least
    return abs(a - b) > absolute + relative * (abs(a) + abs(b))


def _checked(number: Value) -> Value:
    if number == 0:
        return number
    if not SMALLEST < abs(number) < LARGEST:  # or not a number
        raise UnclearError
    real, imaginary = abs(_mp.re(number)), abs(_mp.im(number))
    if imaginary == 0:
        return _mp.re(number)
    if real != 0 and not SMALLEST < real / imaginary < 1 / SMALLEST:  # is the smaller one 0, but for rounding?
        raise UnclearError
    return number


@functools.singledispatch
def _evaluate(formula: sympy.Basic, point: Point) -> Value:
    raise UnclearError


@_evaluate.register
def _(formula: sympy.Rational, point: Point) -> Value:
    return _mp.mpf(formula.p) / formula.q


@_evaluate.register
def _(formula: sympy.Float, point: Point) -> Value:
    return _mp.mpf(formula._mpf_)


@_evaluate.register
def _(formula: sympy.Symbol, point: Point) -> Value:
    return _symbol_value(formula.name, formula.is_real, point.number)


@functools.lru_cache(maxsize=4096)
def _symbol_value(name: str, real: bool | None, number: int) -> Value:
    """Positive where it is real: there, most formulas are defined. An integer for names of integers, which may be bounds."""
    rng = random.Random(f"{name} {real} {number}")
    scale = (1, 3, 8)[number % 3]
    if real and name in ("k", "m", "n"):
        return _mp.mpf(rng.randint(2 * scale, 3 * scale))
    part = scale * rng.uniform(0.25, 1.75)
    return _mp.mpf(part) if real else _mp.mpc(part, scale * rng.uniform(0.25, 1.75))


@_evaluate.register
def _(formula: AppliedUndef, point: Point) -> Value:
    """A function of which only the name is known: formulas that are equal are so for any function of that name."""
    rng = random.Random(f"{formula.func.__name__} {len(formula.args)}")
    phase = sum(rng.uniform(1, 2) * value(arg, point) for arg in formula.args)
    return 2 + _mp.cos(rng.uniform(1, 2) + phase)


@_evaluate.register
def _(formula: sympy.Add, point: Point) -> Value:
    return _sum(value(arg, point) for arg in formula.args)


@_evaluate.register
def _(formula: sympy.Mul, point: Point) -> Value:
    return functools.reduce(lambda product, arg: product * value(arg, point), formula.args, _mp.one)


@_evaluate.register
def _(formula: sympy.log, point: Point) -> Value:
    logarithms = [_mp.log(value(arg, point)) for arg in formula.args]  # of the number, and of the base, if any
    return logarithms[0] if len(logarithms) == 1 else logarithms[0] / _checked(logarithms[1])


@_evaluate.register(sympy.floor)
@_evaluate.register(sympy.ceiling)
def _(formula: sympy.Function, point: Point) -> Value:
    number = _argument(value(formula.args[0], point))
    if not formula.args[0].is_Rational and abs(number - _mp.nint(_mp.re(number))) < SMALLEST:
        raise UnclearError
    return (_mp.floor if isinstance(formula, sympy.floor) else _mp.ceil)(_real(number))


@_evaluate.register(sympy.Max)
@_evaluate.register(sympy.Min)
def _(formula: sympy.Expr, point: Point) -> Value:
    numbers = [_real(value(arg, point)) for arg in formula.args]
    return max(numbers) if isinstance(formula, sympy.Max) else min(numbers)


@_evaluate.register
def _(formula: sympy.Derivative, point: Point) -> Value:
    found = formula.doit()
    if found.has(sympy.Derivative):
        raise UnclearError
    return value(found, point)


@_evaluate.register(sympy.Sum)
@_evaluate.register(sympy.Product)
def _(formula: Any, point: Point) -> Value:
    (variable, first, last), *others = formula.limits
    start = _integer(value(first, point))
    term = lambda index: value(formula.function, point._replace(prescribed={**point.prescribed, variable: index}))
    if others:
        raise UnclearError
    if last == sympy.oo and isinstance(formula, sympy.Sum):
        return _infinite_sum(lambda index: _inner_value(formula.function, point, {variable: index}), start)
    indices = range(start, _integer(value(last, point)) + 1)
    if not 0 < len(indices) <= MAX_TERMS:
        raise UnclearError
    terms = [term(_mp.mpf(index)) for index in indices]
    return _sum(terms) if isinstance(formula, sympy.Sum) else _mp.fprod(terms)


def _infinite_sum(term: Any, start: int) -> Value:
    found = []
    for digits in (20, 15):  # what mpmath makes of a sum that does not converge changes with the precision
        with _mp.workdps(digits):
            found.append(_mp.nsum(term, [start, _mp.inf]))
    return _accurate(found[0], found[0] - found[1])


@_evaluate.register
def _(formula: sympy.Integral, point: Point) -> Value:
    (variable, *bounds), *others = formula.limits
    if others or len(bounds) != 2:
        raise UnclearError
    ends = [{sympy.oo: _mp.inf, -sympy.oo: -_mp.inf}.get(end) or value(end, point) for end in bounds]
    integrand = lambda number: _inner_value(formula.function, point, {variable: number})
    with _mp.workdps(15):
        return _accurate(*_mp.quad(integrand, [_real(end) for end in ends], error=True))


@_evaluate.register
def _(formula: sympy.Limit, point: Point) -> Value:
    function, variable, limit, direction = formula.args
    sides = {"+": (1,), "-": (-1,)}.get(str(direction), (1, -1))
    if limit.is_infinite:
        near = [(1 if limit == sympy.oo else -1) * _mp.mpf(10) ** power for power in (14, 16)]
    else:
        near = [value(limit, point) + side * _mp.mpf(10) ** -power for side in sides for power in (14, 16)]
    with _mp.workdps(2 * DIGITS):
        first, *others = (_inner_value(function, point, {variable: number}) for number in near)
    return _accurate(first, max(abs(other - first) for other in others))


def _inner_value(formula: sympy.Basic, point: Point, prescribed: dict[sympy.Basic, Value]) -> Value:
    return value(formula, Point(point.number, {**point.prescribed, **prescribed}, inner=True))


def _accurate(number: Value, error: Value) -> Value:
    """The number, if its error is far below the least distance of different values."""
    if not (abs(error) <= 1e-12 * max(1, abs(number)) and abs(number) < LARGEST_APPROXIMATE):
        raise UnclearError
    return number


def _sum(terms: Iterable[Value]) -> Value:
    terms = list(terms)
    total = sum(terms, _mp.zero)
    if total != 0 and abs(total) < LEAST_SUM * max(map(abs, terms)):
        raise UnclearError
    return total


def _argument(number: Value) -> Value:
    if not abs(number) < LARGEST_ARGUMENT:
        raise UnclearError
    return number


def _integer(number: Value) -> int:
    if not _mp.isint(number):
        raise UnclearError
    return int(number)


def _real(number: Value) -> Value:
    if _mp.im(number) != 0:
        raise UnclearError
    return _mp.re(number)


def _positive(number: Value) -> Value:
    if not _real(number) >= 0:
        raise UnclearError
    return number


def _register(kind: type, function: Any) -> None:
    _evaluate.register(kind, lambda formula, point: function(*(value(arg, point) for arg in formula.args)))


for _kind, _constant in (
    (sympy.core.numbers.Pi, _mp.pi),
    (sympy.core.numbers.Exp1, _mp.e),
    (sympy.core.numbers.EulerGamma, _mp.euler),
    (sympy.core.numbers.ImaginaryUnit, _mp.j),
):
    _register(_kind, functools.partial(lambda constant: +constant, _constant))
for _kind in (
    sympy.sin, sympy.cos, sympy.tan, sympy.cot, sympy.sec, sympy.csc, sympy.asin, sympy.acos, sympy.atan,
    sympy.sinh, sympy.cosh, sympy.tanh, sympy.asinh, sympy.acosh, sympy.atanh, sympy.gamma,
):  # fmt: skip
    _register(_kind, lambda number, function=getattr(_mp, _kind.__name__): function(_argument(number)))
_register(sympy.Pow, lambda base, exponent: _mp.power(base, _argument(exponent)))
_register(sympy.exp, _mp.exp)
_register(sympy.Abs, abs)
_register(sympy.UnevaluatedExpr, lambda number: number)
# Of other arguments, SymPy's definitions are not those of mpmath.
_register(sympy.factorial, lambda number: _mp.factorial(_positive(_argument(number))))
_register(sympy.binomial, lambda n, k: _mp.binomial(_positive(_argument(n)), _positive(k)))
