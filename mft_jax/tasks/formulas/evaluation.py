"""Evaluates formulas numerically at points, and refuses to return values that are not reliable.

A value is unreliable if rounding may have changed it, if math-verify would round it to 0, or if the formula contains a
function that is not implemented here. A value close to a branch cut is unreliable too, because rounding decides on
which side it lies.
"""

import functools
import hashlib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import mpmath
import sympy
from sympy.core.function import AppliedUndef

DIGITS = 50
SMALLEST, LARGEST = 1e-30, 1e300  # limits of the absolute values of a formula and its parts, unless they are 0
SMALLEST_CONSTANT = 1e-13  # math-verify rounds 1e-15 to 0
LARGEST_ARGUMENT = 1e20  # of a function; the sine of a larger number has few correct digits
LEAST_SUM = 1e-25  # as a share of its largest term; a smaller sum has few correct digits
LARGEST_APPROXIMATION = 1000.0  # of the absolute value of a limit, an infinite sum or an integral
LARGEST_ERROR = 1e-12  # of such an approximation, relative if it is above 1; far below `values.OF_DECIMALS`
MAX_TERMS = 40  # of a finite sum or product
# The term with this index, from the first, must be small in an infinite sum. Otherwise mpmath takes long to find that
# the sum does not converge.
FAR_TERM, LARGEST_FAR_TERM = 1000, 0.01

_mp: Any = mpmath.MPContext()
_mp.dps = DIGITS

Value = Any  # a real or complex number of mpmath

NOTHING: Mapping[sympy.Basic, Value] = types.MappingProxyType({})


class UnreliableError(Exception):
    """A formula has no reliable value at a point."""


class Point(NamedTuple):
    """The values of symbols and functions for which a formula is evaluated."""

    number: int  # determines the random values
    prescribed: Mapping[sympy.Basic, Value] = NOTHING  # values of some symbols and functions; the others are random
    inner: bool = False  # inside a limit, an infinite sum or an integral, where values of any size are allowed


def value(formula: sympy.Basic, point: Point) -> Value:
    """The value of a formula at a point. Raises UnreliableError if it has no reliable value."""
    if point.prescribed and formula in point.prescribed:
        return point.prescribed[formula]
    try:
        found = _evaluate(formula, point)
        if point.inner:
            return found
        if 0 < abs(found) < SMALLEST_CONSTANT and not is_variable(formula):
            raise UnreliableError
        return _checked(found)
    except (ArithmeticError, ValueError, TypeError, NotImplementedError) as error:  # e.g. a pole
        raise UnreliableError from error


@functools.lru_cache(maxsize=4096)
def is_variable(formula: sympy.Basic) -> bool:
    """Whether the value of a formula depends on the point."""
    return bool(formula.free_symbols) or formula.has(AppliedUndef)


def uniform(low: float, high: float, *key: object) -> float:
    """A number between `low` and `high` that depends on `key` only.

    It is a hash and not a random stream, so that equal symbols have equal values in all formulas.
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return low + (high - low) * int.from_bytes(digest, "big") / 2**64


def _checked(number: Value) -> Value:
    """The number as a real number if its imaginary part is 0. Raises UnreliableError if it is not reliable."""
    if number == 0:
        return number
    if not SMALLEST < abs(number) < LARGEST:  # also for nan
        raise UnreliableError
    real, imaginary = abs(_mp.re(number)), abs(_mp.im(number))
    if imaginary == 0:
        return _mp.re(number)
    if real != 0 and not SMALLEST < real / imaginary < 1 / SMALLEST:  # the smaller part may be a rounding error
        raise UnreliableError
    return number


@functools.singledispatch
def _evaluate(formula: sympy.Basic, point: Point) -> Value:
    raise UnreliableError


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
    """A positive number for a real symbol, because most formulas are defined there.

    k, m and n are integers, because they may be bounds of a sum.
    """
    scale = (1, 3, 8)[number % 3]
    if real and name in ("k", "m", "n"):
        return _mp.mpf(math.floor(uniform(2 * scale, 3 * scale + 1, name, number)))
    parts = [scale * uniform(0.25, 1.75, name, real, number, part) for part in ("real", "imaginary")]
    return _mp.mpf(parts[0]) if real else _mp.mpc(*parts)


@_evaluate.register
def _(formula: AppliedUndef, point: Point) -> Value:
    """For a function of which only the name is known, e.g. f(x), any function can be used: here a cosine."""
    name = formula.func.__name__
    phase = sum(uniform(1, 2, name, index) * value(arg, point) for index, arg in enumerate(formula.args))
    return 2 + _mp.cos(uniform(1, 2, name, len(formula.args)) + phase)


@_evaluate.register
def _(formula: sympy.Add, point: Point) -> Value:
    return _sum(value(arg, point) for arg in formula.args)


@_evaluate.register
def _(formula: sympy.Mul, point: Point) -> Value:
    return functools.reduce(lambda product, arg: product * value(arg, point), formula.args, _mp.one)


@_evaluate.register
def _(formula: sympy.log, point: Point) -> Value:
    logarithms = [_mp.log(value(arg, point)) for arg in formula.args]  # of the number, and of its base if given
    return logarithms[0] if len(logarithms) == 1 else logarithms[0] / _checked(logarithms[1])


@_evaluate.register(sympy.floor)
@_evaluate.register(sympy.ceiling)
def _(formula: sympy.Function, point: Point) -> Value:
    number = _argument(value(formula.args[0], point))
    if not formula.args[0].is_Rational and abs(number - _mp.nint(_mp.re(number))) < SMALLEST:
        raise UnreliableError
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
        raise UnreliableError
    return value(found, point)


@_evaluate.register(sympy.Sum)
@_evaluate.register(sympy.Product)
def _(formula: Any, point: Point) -> Value:
    (variable, first, last), *others = formula.limits
    start = _integer(value(first, point))
    term = lambda index: value(formula.function, point._replace(prescribed={**point.prescribed, variable: index}))
    if others:
        raise UnreliableError
    if last == sympy.oo and isinstance(formula, sympy.Sum):
        return _infinite_sum(lambda index: _inner_value(formula.function, point, {variable: index}), start)
    indices = range(start, _integer(value(last, point)) + 1)
    if not 0 < len(indices) <= MAX_TERMS:
        raise UnreliableError
    terms = [term(_mp.mpf(index)) for index in indices]
    return _sum(terms) if isinstance(formula, sympy.Sum) else _mp.fprod(terms)


def _infinite_sum(term: Callable[[Value], Value], start: int) -> Value:
    """The sum of the terms from index `start`. Raises UnreliableError if it does not certainly converge."""
    if not abs(term(_mp.mpf(start + FAR_TERM))) < LARGEST_FAR_TERM:
        raise UnreliableError
    sums = []
    for digits in (20, 15):  # for a sum that does not converge, mpmath's result depends on the precision
        with _mp.workdps(digits):
            sums.append(_mp.nsum(term, [start, _mp.inf]))
    return _accurate(sums[0], sums[0] - sums[1])


@_evaluate.register
def _(formula: sympy.Integral, point: Point) -> Value:
    (variable, *bounds), *others = formula.limits
    if others or len(bounds) != 2:
        raise UnreliableError
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
    """The number itself. Raises UnreliableError if it is too large, or its estimated error is."""
    if not (abs(error) <= LARGEST_ERROR * max(1, abs(number)) and abs(number) < LARGEST_APPROXIMATION):
        raise UnreliableError
    return number


def _sum(terms: Iterable[Value]) -> Value:
    """The sum of the terms. Raises UnreliableError if they nearly cancel."""
    terms = list(terms)
    total = sum(terms, _mp.zero)
    if total != 0 and abs(total) < LEAST_SUM * max(map(abs, terms)):
        raise UnreliableError
    return total


def _argument(number: Value) -> Value:
    if not abs(number) < LARGEST_ARGUMENT:
        raise UnreliableError
    return number


def _integer(number: Value) -> int:
    if not _mp.isint(number):
        raise UnreliableError
    return int(number)


def _real(number: Value) -> Value:
    if _mp.im(number) != 0:
        raise UnreliableError
    return _mp.re(number)


def _positive(number: Value) -> Value:
    if not _real(number) >= 0:
        raise UnreliableError
    return number


def _register(kind: type, function: Callable[..., Value]) -> None:
    """Evaluates formulas of this type by applying `function` to the values of their arguments."""
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
    _register(
        _kind, functools.partial(lambda function, number: function(_argument(number)), getattr(_mp, _kind.__name__))
    )
_register(sympy.Pow, lambda base, exponent: _mp.power(base, _argument(exponent)))
_register(sympy.exp, _mp.exp)
_register(sympy.Abs, abs)
_register(sympy.UnevaluatedExpr, lambda number: number)
# For negative or complex arguments, SymPy and mpmath define these functions differently.
_register(sympy.factorial, lambda number: _mp.factorial(_positive(_argument(number))))
_register(sympy.binomial, lambda n, k: _mp.binomial(_positive(_argument(n)), _positive(k)))
