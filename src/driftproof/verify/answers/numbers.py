r"""Numbers as people write them, read exactly: `1,234.5`, `\frac{3}{4}`, `3 1/2`, `3.2 \times 10^3`, `0.\overline{3}`.

A decimal stands for exactly itself: 0.33 is not a third. Six decimals that round a number without a finite decimal
are taken for it, for that is as exact as a decimal gets.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_MOST_DIGITS = 400
"""Digits of a number, and the size of a power of ten, that are read here."""
_ENOUGH_DECIMALS = 6
_GROUPED = re.compile(
    r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}"
    r"|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d{1,3}(?:_\d{3})+)(?![\d,'_]| \d)"
)
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_SIGN = r"(?P<sign>[-+]?)\s*"
_FORMS = (
    re.compile(rf"{_SIGN}(?P<decimal>{_DECIMAL})"),
    re.compile(rf"{_SIGN}(?P<decimal>{_DECIMAL})\s*[eE]\s*(?P<power>[-+]?\d+)"),
    re.compile(
        rf"{_SIGN}(?:(?P<decimal>{_DECIMAL})\s*(?:\\times|\\cdot|\*|x|X)\s*)?10\s*\^\s*\{{?\s*(?P<power>[-+]?\s*\d+)\s*\}}?"
    ),
    re.compile(
        rf"{_SIGN}(?:(?P<whole>\d+)\s*)?\\frac\s*\{{\s*(?P<top>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>-?{_DECIMAL})\s*\}}"
    ),
    re.compile(rf"{_SIGN}(?:(?P<whole>\d+)\s+)?(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})"),
)
_REPEATING = re.compile(
    rf"{_SIGN}(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot|widebar)\s*\{{(?P<over>\d+)\}}|\((?P<in>\d+)\))"
)
_TRAILING_DOTS = re.compile(rf"{_SIGN}(?P<whole>\d*)\.(?P<digits>\d+)\s*(?:\\l?c?dots|\.\.\.?)")
_PERIOD = re.compile(r"(\d*?)(?:(\d)\2{2,}|(\d{2,}?)\3+)")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, and to how many decimals it was written (None: as a fraction)."""

    value: Fraction
    decimals: int | None = None


def read_number(text: str) -> Number | None:
    """The number that a text is, and nothing else; None where it is not one number."""
    text = text.strip()
    if not text or len(text) > _MOST_DIGITS or text[0] not in "-+.0123456789\\":
        return None
    text = _GROUPED.sub(lambda found: re.sub(r"[ ,'_]", "", found[0]), text)
    for form in _FORMS:
        if found := form.fullmatch(text):
            return _number(found.groupdict())
    if found := _REPEATING.fullmatch(text):
        return _repeating(found["sign"], found["whole"], found["fixed"], found["over"] or found["in"])
    if (found := _TRAILING_DOTS.fullmatch(text)) and (period := _PERIOD.fullmatch(found["digits"])):
        return _repeating(found["sign"], found["whole"], period[1], period[2] or period[3])
    return None


def _number(parts: dict[str, str | None]) -> Number | None:
    sign = -1 if parts["sign"] == "-" else 1
    if top := parts.get("top"):
        bottom = Fraction(str(parts["bottom"]).rstrip("."))
        if not bottom:
            return None
        whole, fraction = int(parts.get("whole") or 0), Fraction(top.rstrip(".")) / bottom
        if parts.get("whole") and not 0 < fraction < 1:
            return None  # 2\frac{5}{3} is a product
        return Number(sign * (whole + fraction))
    decimal = parts.get("decimal") or "1"
    power = int((parts.get("power") or "0").replace(" ", ""))
    if abs(power) > _MOST_DIGITS:
        return None
    written = len(decimal.partition(".")[2])
    return Number(sign * Fraction(decimal.rstrip(".")) * Fraction(10) ** power, max(0, written - power))


def _repeating(sign: str, whole: str, fixed: str, period: str) -> Number:
    digits = Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    value = int(whole or 0) + Fraction(int(fixed or 0), 10 ** len(fixed)) + digits
    return Number(-value if sign == "-" else value)


def same_number(a: Number, b: Number) -> bool:
    """Whether two numbers are equal, or one rounds the other, which has no finite decimal, to six decimals or more."""
    return a.value == b.value or _rounds(a, b) or _rounds(b, a)


def _rounds(rounded: Number, exact: Number) -> bool:
    if exact.decimals is not None or rounded.decimals is None or _is_finite_decimal(exact.value):
        return False
    return close(rounded, exact.value)


def close(rounded: Number, value: Fraction) -> bool:
    """Whether a decimal rounds (or cuts) a value to at least six decimals."""
    decimals = rounded.decimals
    return (
        decimals is not None and decimals >= _ENOUGH_DECIMALS and abs(rounded.value - value) < Fraction(1, 10**decimals)
    )


def _is_finite_decimal(value: Fraction) -> bool:
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1
