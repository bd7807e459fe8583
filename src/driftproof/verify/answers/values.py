r"""Whether two sympy expressions have one value: exactly, or to 30 digits of their own size.

Where they have variables they are compared at several places, so that nothing has to be simplified. Numbers that
would be too large to compute have no value here, nor have integrals.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import sympy

from driftproof.verify.answers.numbers import Number, close

_LARGEST = 20_000.0
"""Decimal digits of the largest number that is computed."""
_MOST_TERMS = 1_000
"""Terms of a sum or product that is computed."""
_DIGITS = 30
_PLACES = (
    ("0.731", "1.379", "2.617", "0.433"),
    ("-0.617", "0.523", "-1.913", "3.371"),
    ("3", "7", "5", "2"),
    ("5.237", "-3.191", "0.811", "-1.439"),
)
_INTEGER_PLACES = (
    ("3", "7", "5", "2"),
    ("9", "4", "2", "6"),
    ("6", "9", "4", "8"),
    ("7", "3", "1", "5"),
    ("2", "5", "9", "7"),
    ("8", "6", "3", "1"),
)
"""Values of the variables, in their order, at which two expressions are compared."""


def is_value(one: Any) -> bool:
    """Whether an object is an expression with a finite value, once its variables have one."""
    return isinstance(one, sympy.Expr) and not one.has(sympy.zoo, sympy.nan, sympy.oo, sympy.Integral)


def is_computable(one: Any) -> bool:
    """Whether every number in an object is small enough to be computed."""
    return all(_digits(part) <= _LARGEST for part in one.atoms(sympy.Pow, sympy.exp, sympy.factorial, sympy.binomial))


def equal_values(a: Any, b: Any, numbers: tuple[Number | None, Number | None] = (None, None)) -> bool:
    """Whether two values are equal wherever they are both defined; `numbers` are those that are plain decimals."""
    if _digits(a) > _LARGEST or _digits(b) > _LARGEST:
        return False
    if not (a.free_symbols or b.free_symbols):
        return _same(evaluated(a), evaluated(b), numbers)
    agreed = zeros = 0
    for x, y in at_places(a, b):
        if _same(x, y):
            zeros += bool(x == 0)
            agreed += bool(x != 0)
        elif not agreed or (x.is_real and y.is_real):
            return False  # below zero a root has several values; complex ones are no proof
    return agreed >= 2 or zeros >= len(_PLACES)


def at_places(*expressions: Any) -> Iterator[tuple[Any, ...]]:
    """The values of expressions at each place where all of them have one."""
    names = sorted({symbol.name for one in expressions for symbol in one.free_symbols})
    counted = any(one.has(sympy.Sum, sympy.Product, sympy.factorial, sympy.binomial) for one in expressions)
    for place in _INTEGER_PLACES if counted else _PLACES:
        values = {name: sympy.Rational(place[i % len(place)]) + i // len(place) for i, name in enumerate(names)}
        found = tuple(
            evaluated(one.subs({symbol: values[symbol.name] for symbol in one.free_symbols})) for one in expressions
        )
        if None not in found:
            yield found


def evaluated(one: Any) -> Any | None:
    """The value as an exact rational or to 30 digits; None where it has none or would be too large."""
    try:
        if _digits(one) > _LARGEST or math.prod(map(_terms, one.atoms(sympy.Sum, sympy.Product))) > _MOST_TERMS:
            return None
        value = one.doit()
        value = value if value.is_Rational else value.evalf(_DIGITS)
        if not value.is_number or value.has(sympy.Sum, sympy.Product, sympy.Function):
            return None
        real, imaginary = value.as_real_imag()
    except (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError):
        return None
    return value if real.is_number and real.is_finite and imaginary.is_finite else None


def _terms(one: Any) -> float:
    """How many terms a sum has; infinite where its bounds are no numbers."""
    count = 1.0
    for _, low, high in one.limits:
        if not (low.is_Integer and high.is_Integer):
            return float("inf")
        count *= abs(int(high) - int(low)) + 1
    return count


def _digits(one: Any) -> float:
    """A bound on the decimal digits of a value, infinite where nobody should compute it; a variable has one digit."""
    if isinstance(one, sympy.Rational):
        return float(max(one.p.bit_length(), one.q.bit_length())) * 0.30103 + 1.0
    if not one.args:
        return 1.0
    if isinstance(one, sympy.factorial | sympy.gamma | sympy.binomial):
        largest = _size(one.args[0])
        return largest * max(1.0, math.log10(max(largest, 1.0))) if largest < _LARGEST else math.inf
    below = [_digits(argument) for argument in one.args]
    if isinstance(one, sympy.Add):
        return max(below) + 1.0
    if isinstance(one, sympy.Pow):
        return below[0] * max(1.0, _size(one.exp))
    return sum(below) + (_size(one.args[0]) if isinstance(one, sympy.exp) else 0.0)


def _size(one: Any) -> float:
    """A bound on the absolute value of an expression whose variables are at most 10; infinite beyond `_LARGEST`."""
    if isinstance(one, sympy.Rational):
        size = abs(one.p) / one.q if max(one.p.bit_length(), one.q.bit_length()) < 900 else math.inf
    elif not one.args:
        size = 10.0
    elif isinstance(one, sympy.Add):
        size = math.fsum(map(_size, one.args))
    elif isinstance(one, sympy.Mul):
        size = math.prod(map(_size, one.args))
    elif isinstance(one, sympy.Pow | sympy.exp):
        base, exponent = _size(one.base), _size(one.exp)
        if one.exp.is_negative:
            base = 1.0 / base if isinstance(one.base, sympy.Rational) and base else 10.0
        size = max(base, 1.0) ** exponent if exponent * math.log10(max(base, 1.1)) < 100 else math.inf
    else:
        size = max(10.0, *map(_size, one.args))
    return size if size <= 1e100 else math.inf


def _same(x: Any | None, y: Any | None, numbers: tuple[Number | None, Number | None] = (None, None)) -> bool:
    if x is None or y is None:
        return False
    if x.is_Rational and y.is_Rational:
        return bool(x == y)
    for rounded, exact in ((numbers[0], y), (numbers[1], x)):
        if rounded and exact.is_real and not exact.is_Rational:
            value = sympy.Rational(exact)
            return close(rounded, Fraction(int(value.p), int(value.q)))
    size = max(abs(sympy.N(x, 10)), abs(sympy.N(y, 10)))
    parts = zip(x.as_real_imag(), y.as_real_imag(), strict=True)
    return all(_is_small(p - q, size) or (_is_noise(p) and _is_noise(q)) for p, q in parts)


def _is_small(difference: Any, size: Any) -> bool:
    return bool(abs(difference) <= size * sympy.Float(10) ** -20)


def _is_noise(part: Any) -> bool:
    """Whether a part is zero, or what is left of terms that cancel: a number without a single right digit."""
    return bool(part == 0) or (isinstance(part, sympy.Float) and part._prec < 10)
