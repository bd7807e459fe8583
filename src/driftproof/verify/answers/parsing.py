r"""LaTeX read by Math-Verify's reader, prepared so that nothing is lost on the way.

Decimals become fractions, so that values stay exact; derivatives and primes become symbols of their own; `i` is the
imaginary unit; letters keep their case. What would take the reader long is not read.
"""

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

from driftproof.verify.answers.values import is_computable

logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)

_LONGEST = 500
"""Characters of an expression that is read."""
_DEEPEST = 25
"""Brackets within brackets; the reader is recursive."""
_MOST_BARS = 8
"""Signs of absolute values; the reader tries every way to pair them."""
# No units: they are taken away before, and letters are not mistaken for them. Boxes are found before, too.
_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_SCIENTIFIC = re.compile(r"(?<![\w.}])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?![\w.{^])")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_LAST_POINT = re.compile(r"(?<=\d)\.(?!\d)")
_IMAGINARY = re.compile(r"(?<![a-zA-Z\\_])(?<!_\{)i(?![a-zA-Z])")
_MIXED = re.compile(r"(?<![\d.}^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)")
_COEFFICIENT = re.compile(r"(?<![\w.}^/)])(\d+)\s*/\s*(\d+)\s*(?=[a-zA-Z](?![a-zA-Z]))")
"""A fraction in front of a variable: `3/4 x` is three quarters of it."""
_JUXTAPOSED = re.compile(r"\d\s+\d")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|[a-z]|\\[a-z]+)\s*\^\s*\{\\circ\}")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_LOGARITHM = re.compile(r"\\log\s*_\s*(\{[^{}]*\}|\w)\s*(\d+|[a-zA-Z])(?![\d.])")
_D = r"(?:d|\\partial)\s*(?:\^\s*\{?\d\}?)?\s*"
_LETTER = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{?\w+\}?)?"
_DERIVATIVE = re.compile(rf"\\frac\{{\s*{_D}{_LETTER}\s*\}}\{{\s*{_D}{_LETTER}\s*(?:\^\s*\{{?\d\}}?)?\s*\}}")
_CAPITAL_I = re.compile(r"\\[a-zA-Z]+|I(?!_)")
_PRIMES = re.compile(r"(?<=[a-zA-Z}])('+|\^\s*\{(?:\\prime\s*)+\}|\^\s*\\prime(?![a-zA-Z]))")
_PRIMED_INDEX = re.compile(r"_\s*(?:\{(\w+)\}|(\w))\s*(?:('+)|\^\s*\{?(?:\\prime\s*)+\}?)")
_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{4,}(?!\})")
"""A word that is no command, no environment and no index."""
_ROOT_OF_NEGATIVE = re.compile(r"\\sqrt\s*\[")
_UNREADABLE = re.compile(
    r"\\vec.*\\times|[A-Z]\s*\\times\s*[A-Z]|\d\s*'|\\(?:angle|triangle|hat|widehat|land|lor|wedge|vee|neg)(?![a-zA-Z])"
)
"""Symbols that the reader takes for products of letters: those of vectors and sets, angles, logic, minutes of arc."""
_HUGE = re.compile(r"\\(?:gcd|lcm|operatorname).*\^|\\[dt]?binom\s*\{[^{}]*(?:\d{5}|\^)")
"""Functions that the reader computes at once."""


@lru_cache(maxsize=4096)
def parsed(latex: str) -> Any | None:
    """The sympy object that an expression is; None where it cannot be read."""
    if len(latex) > _LONGEST or latex.count("|") > _MOST_BARS or _depth(latex) > _DEEPEST:
        return None
    if _WORD.search(latex) or _UNREADABLE.search(latex):
        return None
    if _JUXTAPOSED.search(_LOGARITHM.sub("", _MIXED.sub("", latex))) or _HUGE.search(latex):
        return None
    text = normalize_latex(_prepared(latex), _NORMAL)
    try:
        found = latex2sympy(
            text, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=_CONVERSION
        )
    except Exception:  # noqa: BLE001 (the reader raises whatever its parser or sympy does)
        return None
    if not isinstance(found, sympy.Basic | sympy.MatrixBase) or not is_computable(found):
        return None
    if "i" in {symbol.name for symbol in found.free_symbols}:
        found = found.xreplace({symbol: sympy.I for symbol in found.free_symbols if symbol.name == "i"})
    return _real_roots(found) if _ROOT_OF_NEGATIVE.search(latex) else found


def _prepared(latex: str) -> str:
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", latex)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _COEFFICIENT.sub(r"\\frac{\1}{\2} ", text)
    text = _LAST_POINT.sub("", _DECIMAL.sub(_as_fraction, text))
    if _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\\frac{\1 \\pi}{180})", text)
    text = _LOGARITHM.sub(r"\\log_\1{(\2)}", text)
    text = _DERIVATIVE.sub(lambda found: f"D_{{{re.sub('[^a-zA-Z0-9]', '', found[0])}}}", text)
    text = _CAPITAL_I.sub(lambda found: "X_{I}" if found[0] == "I" else found[0], text)
    text = _PRIMED_INDEX.sub(r"_{\1\2p}", text)
    text = _PRIMES.sub(lambda found: f"_{{{'p' * (found[0].count(chr(39)) + found[0].count('prime'))}}}", text)
    return _IMAGINARY.sub(" i ", text)


def _as_fraction(decimal: re.Match[str]) -> str:
    whole, digits = decimal.groups()
    return rf"\frac{{{int(whole + digits)}}}{{{10 ** len(digits)}}}"


def _real_roots(one: Any) -> Any:
    """The expression with the real value of odd roots of negative numbers."""

    def is_odd_root(part: Any) -> bool:
        power = part.is_Pow and part.exp.is_Rational and part.exp.q % 2 == 1 and part.exp.q > 1
        return bool(power and part.base.is_Rational and part.base < 0)

    return one.replace(is_odd_root, lambda part: (-1) ** part.exp.p * (-part.base) ** part.exp)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
