r"""Whether two LaTeX expressions are mathematically equal, through Math-Verify.

Math-Verify reads them, and compares equations, sets and whatever has no value. Two values it calls equal within 15
digits of one; here they are evaluated exactly, or to 30 digits of their own size, at several places where they have
variables, so that `10^{-400}` is not `10^{-401}`, and nothing has to be simplified. Decimals are read as fractions.
"""

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from driftproof.verify.answers.numbers import Number, close, read_number, same_number

# It warns once in every process that its own time limits are off; the pool has the limit.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_LONGEST_EXPRESSION = 500
"""Characters; a longer one is equal to the same text alone."""
_DEEPEST = 30
"""Brackets within brackets; Math-Verify's reader is recursive."""
_LARGEST_POWER = 20_000.0
"""Decimal digits of the largest number that is computed."""
_DIGITS = 30
_PLACES = (
    (sympy.Rational(731, 1000), sympy.Rational(1379, 1000), sympy.Rational(2617, 1000), sympy.Rational(433, 1000)),
    (sympy.Rational(-617, 1000), sympy.Rational(523, 1000), sympy.Rational(-1913, 1000), sympy.Rational(3371, 1000)),
    (sympy.Integer(3), sympy.Integer(7), sympy.Integer(5), sympy.Integer(2)),
    (sympy.Rational(5237, 1000), sympy.Rational(-3191, 1000), sympy.Rational(811, 1000), sympy.Rational(-1439, 1000)),
)
"""Values of the variables, in their order, at which two expressions are compared."""
# No units: they are taken away before, and letters are not mistaken for them. Boxes are found before, too.
_LATEX = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    ),
)
_SCIENTIFIC = re.compile(r"(?<![\w.}])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?![\w.{^])")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_LAST_POINT = re.compile(r"(?<=\d)\.(?!\d)")
_IMAGINARY = re.compile(r"(?<![a-zA-Z\\_])(?<!_\{)i(?![a-zA-Z])")
_MIXED = re.compile(r"(?<![\d.}^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)")
_JUXTAPOSED = re.compile(r"\d\s+\d")


def equal_expressions(gold: str, found: str) -> bool:
    """Whether two expressions have one value, are one equation or one set; what cannot be read is equal to itself."""
    if _same_text(gold, found):
        return True
    numbers = read_number(gold), read_number(found)
    if numbers[0] and numbers[1]:
        return same_number(numbers[0], numbers[1])
    a, b = parsed(gold), parsed(found)
    if a is None or b is None:
        return False
    return _equal(a, b, numbers)


def _same_text(gold: str, found: str) -> bool:
    a, b = (re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text) for text in (gold, found))
    return a == b != ""


@lru_cache(maxsize=4096)
def parsed(latex: str) -> Any | None:
    """The sympy object that Math-Verify reads; None where it reads none."""
    if len(latex) > _LONGEST_EXPRESSION or _depth(latex) > _DEEPEST or _JUXTAPOSED.search(_MIXED.sub("", latex)):
        return None
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", latex)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _LAST_POINT.sub("", _DECIMAL.sub(_as_fraction, text))
    text = _IMAGINARY.sub(" i ", text)
    readings = parse(f"$ {text} $", (_LATEX,), fallback_mode="no_fallback", parsing_timeout=None)
    found = readings[0] if readings else None
    return _with_imaginary_unit(found) if isinstance(found, sympy.Basic | sympy.MatrixBase) else None


def _with_imaginary_unit(one: Any) -> Any:
    """The object with the imaginary unit for the letter i, which Math-Verify reads as a symbol that is not real."""
    return one.xreplace({symbol: sympy.I for symbol in one.free_symbols if symbol.name == "i"})


def _as_fraction(decimal: re.Match[str]) -> str:
    whole, digits = decimal.groups()
    return rf"\frac{{{int(whole + digits)}}}{{{10 ** len(digits)}}}"


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _equal(a: Any, b: Any, numbers: tuple[Number | None, Number | None]) -> bool:
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        pairs = zip(a.flat(), b.flat(), strict=False)
        return a.shape == b.shape and all(_equal(x, y, (None, None)) for x, y in pairs)
    if a.has(sympy.zoo, sympy.nan) or b.has(sympy.zoo, sympy.nan):
        return False
    if a == b:
        return True
    if not (_is_value(a) and _is_value(b)):
        return bool(verify(a, b, timeout_seconds=None, allow_set_relation_comp=True))
    if _digits(a) > _LARGEST_POWER or _digits(b) > _LARGEST_POWER:
        return False
    return _equal_values(a, b, numbers)


def _is_value(one: Any) -> bool:
    return isinstance(one, sympy.Expr) and not one.has(sympy.zoo, sympy.nan, sympy.oo, sympy.Sum, sympy.Integral)


def _digits(one: Any) -> float:
    """A bound on the decimal digits of a value in front of its point; infinite beyond all bounds."""
    if isinstance(one, sympy.Rational):
        return max(len(str(abs(one.p))), len(str(one.q))) if abs(one.p) < 10**4000 and one.q < 10**4000 else 5000.0
    if isinstance(one, sympy.factorial | sympy.gamma) and one.args[0].is_Integer and 0 < one.args[0] < 10**5:
        return float(int(one.args[0]) * len(str(one.args[0])))
    below = [_digits(argument) for argument in one.args]
    if isinstance(one, sympy.Add):
        return max(below) + 1.0
    if isinstance(one, sympy.Pow | sympy.exp):
        base, power = below if len(below) == 2 else (1.0, below[0])
        return base * 10.0**power if power < 6 and base * 10.0**power < 1e7 else float("inf")
    if isinstance(one, sympy.factorial | sympy.binomial | sympy.gamma):
        return 10.0 ** below[0] * below[0] if below[0] < 5 else float("inf")
    return sum(below, 1.0)


def _equal_values(a: Any, b: Any, numbers: tuple[Number | None, Number | None]) -> bool:
    names = sorted({symbol.name for symbol in a.free_symbols | b.free_symbols})
    if not names:
        return _equal_numbers(_evaluated(a), _evaluated(b), numbers)
    agreed = 0
    for place in _PLACES:
        values = {name: place[i % len(place)] + i // len(place) for i, name in enumerate(names)}
        x, y = (_evaluated(_at(one, values)) for one in (a, b))
        if x is None or y is None:
            continue
        if _equal_numbers(x, y, (None, None)):
            agreed += 1
        elif agreed < 1 or (x.is_real and y.is_real):
            return False  # below zero a root has several values; complex ones are no proof
    return agreed >= 2 or (not agreed and bool(verify(a, b, timeout_seconds=None)))


def _at(one: Any, values: dict[str, Any]) -> Any:
    return one.subs({symbol: values[symbol.name] for symbol in one.free_symbols})


def _evaluated(one: Any) -> Any | None:
    """The value as an exact rational or to 30 digits, with how many of them are right; None where it has none."""
    try:
        value = one.doit()
        value = value if value.is_Rational else value.evalf(_DIGITS)
    except (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError):
        return None
    real, imaginary = value.as_real_imag() if value.is_number else (sympy.nan, sympy.nan)
    return value if real.is_number and real.is_finite and imaginary.is_finite else None


def _equal_numbers(x: Any | None, y: Any | None, numbers: tuple[Number | None, Number | None]) -> bool:
    if x is None or y is None:
        return False
    if x.is_Rational and y.is_Rational:
        return bool(x == y)
    for rounded, exact in ((numbers[0], y), (numbers[1], x)):
        if rounded and exact.is_real and not exact.is_Rational:
            value = sympy.Rational(exact)
            return close(rounded, sympy_fraction(value))
    parts = zip(x.as_real_imag(), y.as_real_imag(), strict=True)
    size = max(abs(sympy.N(x, 10)), abs(sympy.N(y, 10)))
    return all(_is_zero(p - q, size) or (_is_noise(p) and _is_noise(q)) for p, q in parts)


def sympy_fraction(value: Any) -> Any:
    from fractions import Fraction

    return Fraction(int(value.p), int(value.q))


def _is_zero(difference: Any, size: Any) -> bool:
    return bool(abs(difference) <= size * sympy.Float(10) ** -20)


def _is_noise(part: Any) -> bool:
    """Whether a part is zero, or what is left of terms that cancel: a number without a single right digit."""
    return bool(part == 0) or (isinstance(part, sympy.Float) and part._prec < 10)
