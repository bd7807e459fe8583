r"""Intervals and inequalities in one form: `-1 < x \le 3`, `3 \ge x > -1` and `(-1, 3]` are one region."""

import re
from collections.abc import Sequence
from fractions import Fraction

from driftproof.verify.answers.forms import Interval, Region
from driftproof.verify.answers.numbers import read_number
from driftproof.verify.answers.spelling import plain_mathematics

_LEAST, _MOST = "-\\infty", "\\infty"
_ORDER = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]")
_VARIABLE = re.compile(
    r"\s*(?:[a-zA-Z](?:_\s*\{?\w+\}?|\s*\(\s*[a-z]\s*\))?|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega))\s*"
)
_UPWARD = {"<": True, "\\le": True, ">": False, "\\ge": False}
_INFINITE = re.compile(r"\s*([-+]?)\s*\\infty\s*")


def as_interval(opening: str, low: str, high: str, closing: str) -> Interval | None:
    """The interval in these brackets; None where they are no brackets of an interval."""
    if opening not in ("(", "[") or closing not in (")", "]"):
        return None
    return Interval(_end(low), _end(high), opening == "(", closing == ")")


def is_infinite(end: str) -> bool:
    """Whether an end of an interval is infinite."""
    return end in (_LEAST, _MOST)


def read_inequality(text: str) -> Region | None:
    r"""The region of one variable between bounds (`x < 8`, `0 \le a < 4`, `x \ne 2`); None for any other relation."""
    signs = [sign.group().strip() for sign in _ORDER.finditer(text)]
    sides = [side.strip() for side in _ORDER.split(text)]
    if len(sides) == 2:
        left, right = sides
        if _VARIABLE.fullmatch(left) and not _VARIABLE.fullmatch(right):
            return _half(left, signs[0], right, text)
        if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
            return _half(right, _reversed(signs[0]), left, text)
        return None
    if len(sides) != 3 or "\\ne" in signs or _UPWARD[signs[0]] != _UPWARD[signs[1]]:
        return None
    if not _VARIABLE.fullmatch(sides[1]):
        return None
    low, high, opens = sides[0], sides[2], [sign in "<>" for sign in signs]
    if not _UPWARD[signs[0]]:
        low, high, opens = high, low, opens[::-1]
    return Region(sides[1].replace(" ", ""), (Interval(_end(low), _end(high), *opens),), plain_mathematics(text))


def intersection(regions: Sequence[Region]) -> Region | None:
    """The numbers above one bound and below another, where two half-lines overlap: `x > 1 and x < 5`."""
    if len(regions) != 2 or any(len(one.intervals) != 1 for one in regions):
        return None
    above, below = sorted((one.intervals[0] for one in regions), key=lambda one: is_infinite(one.low))
    low, high = read_number(above.low), read_number(below.high)
    if not (is_infinite(above.high) and is_infinite(below.low) and low and high and low.value < high.value):
        return None
    return Region(regions[0].variable, (Interval(above.low, below.high, above.left_open, below.right_open),))


def merged(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """The intervals, those that touch as one, where all their ends are plain numbers."""
    ends = {end: _value(end) for one in intervals for end in (one.low, one.high)}
    if len(intervals) < 2 or None in ends.values():
        return tuple(intervals)
    values = {end: value for end, value in ends.items() if value is not None}
    done: list[Interval] = []
    for one in sorted(intervals, key=lambda one: (values[one.low], one.left_open)):
        last = done[-1] if done else None
        if last and (values[one.low], one.left_open and last.right_open) <= (values[last.high], False):
            high = max(last, one, key=lambda each: (values[each.high], not each.right_open))
            done[-1] = Interval(last.low, high.high, last.left_open, high.right_open)
        else:
            done.append(one)
    return tuple(done)


def _value(end: str) -> Fraction | float | None:
    if is_infinite(end):
        return float("inf") if end == _MOST else float("-inf")
    number = read_number(end)
    return number.value if number else None


def _half(variable: str, sign: str, bound: str, text: str) -> Region | None:
    if not bound or "=" in bound:
        return None
    variable, end, is_open = variable.replace(" ", ""), _end(bound), sign in "<>"
    latex = plain_mathematics(text)
    if sign == "\\ne":
        return Region(variable, (Interval(_LEAST, end, True, True), Interval(end, _MOST, True, True)), latex)
    if _UPWARD[sign]:
        return Region(variable, (Interval(_LEAST, end, True, is_open),), latex)
    return Region(variable, (Interval(end, _MOST, is_open, True),), latex)


def _reversed(sign: str) -> str:
    return {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}.get(sign, sign)


def _end(text: str) -> str:
    if found := _INFINITE.fullmatch(text):
        return _LEAST if found[1] == "-" else _MOST
    return plain_mathematics(text.strip())
