r"""Whether two answers are equal, by their forms; what their expressions are worth, the caller's function says.

A wrong answer accepted is worse than a right one refused: what is not shown to be equal is not.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from driftproof.verify.answers.forms import (
    Based,
    Choice,
    Colon,
    Form,
    Group,
    Interval,
    Named,
    Region,
    Relation,
    Scalar,
    Words,
)
from driftproof.verify.answers.intervals import is_infinite, merged
from driftproof.verify.answers.numbers import Number, read_number, same_number
from driftproof.verify.answers.reading import interval_of, normal_words
from driftproof.verify.answers.tables import RATIOS
from driftproof.verify.answers.units import in_short

Expressions = Callable[[str, str], bool]
"""Whether two LaTeX expressions (the gold one first) are mathematically equal."""

_MOST_ITEMS = 50
_SPELLED = re.compile(r"[a-zA-Z]+|\d+(?: [a-zA-Z ]+)?")
_COLUMN = re.compile(r"\\begin\{pmatrix\}([^&]*|(?:(?!\\\\).)*)\\end\{pmatrix\}")


def equal(gold: Form, found: Form, expressions: Expressions) -> bool:
    """Whether `found` says what `gold` says."""
    gold, found = _alone(gold, found), _alone(found, gold)
    if isinstance(gold, Named) or isinstance(found, Named):
        return _named(gold, found, expressions)
    if isinstance(gold, Region) or isinstance(found, Region):
        return _regions(gold, found, expressions)
    if isinstance(gold, Group) and isinstance(found, Group):
        return _groups(gold, found, expressions)
    if isinstance(gold, Choice) or isinstance(found, Choice):
        return _choices(gold, found, expressions)
    if isinstance(gold, Scalar) and isinstance(found, Scalar):
        return _scalars(gold, found, expressions)
    if isinstance(gold, Scalar):
        return _value_and_other(gold, found, expressions)
    if isinstance(found, Scalar) and isinstance(gold, Based):
        return found.latex.lstrip("0").lower() == gold.digits  # the question says in which base
    if isinstance(found, Scalar):
        return not isinstance(gold, Relation) and _value_and_other(found, gold, expressions)
    return _others(gold, found, expressions)


def _alone(form: Form, other: Form) -> Form:
    """The member of a set of one, beside something that is no list."""
    if isinstance(form, Group) and form.opening == "{" and len(form.items) == 1 and not isinstance(other, Group):
        return form.items[0]
    return form


def _others(gold: Form, found: Form, expressions: Expressions) -> bool:
    if isinstance(gold, Words) and isinstance(found, Words):
        return gold.text == found.text != ""
    if isinstance(gold, Colon) and isinstance(found, Colon):
        return _colons(gold, found)
    if isinstance(gold, Relation) and isinstance(found, Relation):
        return expressions(gold.latex, found.latex)
    return isinstance(gold, Based) and gold == found


def _value_and_other(scalar: Scalar, other: Form, expressions: Expressions) -> bool:
    """A value against a ratio, an equation's last side, a vector's components, a word."""
    if isinstance(other, Colon) and len(other.parts) == 2 and not _is_time(other) and "." not in "".join(other.parts):
        return expressions(f"\\frac{{{other.parts[0]}}}{{{other.parts[1]}}}", scalar.latex)
    if isinstance(other, Relation):
        return bool(other.last) and expressions(scalar.latex, other.last)
    if isinstance(other, Group) and other.decimal:
        return _is_decimal(scalar.latex) and expressions(scalar.latex, other.decimal)
    if isinstance(other, Group) and other.opening in ("(", "<") and (column := _COLUMN.fullmatch(scalar.latex)):
        parts = re.split(r"\\\\|&", column[1].strip().removesuffix("\\\\"))
        items = [item.latex if isinstance(item, Scalar) else "" for item in other.items]
        return len(parts) == len(items) and all(map(expressions, (part.strip() for part in parts), items))
    whole = scalar.whole or scalar.latex
    return isinstance(other, Words) and bool(_SPELLED.fullmatch(whole)) and normal_words(whole) == other.text


def _is_decimal(latex: str) -> bool:
    number = read_number(latex)
    return number is not None and number.value.denominator != 1


def _named(gold: Form, found: Form, expressions: Expressions) -> bool:
    if isinstance(gold, Named) and isinstance(found, Named):
        if _same_name(gold.name, found.name):
            return equal(gold.value, found.value, expressions)
        return expressions(gold.latex, found.latex)
    if isinstance(gold, Relation) or isinstance(found, Relation):
        named, other = (gold, found) if isinstance(gold, Named) else (found, gold)
        if isinstance(named, Named) and isinstance(other, Relation):
            return (
                expressions(gold.latex, found.latex)
                if isinstance(gold, Named | Relation) and isinstance(found, Named | Relation)
                else False
            )
        return False
    if isinstance(gold, Named):
        return equal(_assignments(gold, found), found, expressions)
    return isinstance(found, Named) and equal(gold, _assignments(found, gold), expressions)


def _same_name(a: str, b: str) -> bool:
    """Whether two names are one; a function may be called `y` or by its name."""
    return (
        a == b
        or (a == "y" and bool(re.fullmatch(r"[a-zA-Z]\(x\)", b)))
        or (b == "y" and bool(re.fullmatch(r"[a-zA-Z]\(x\)", a)))
    )


def _assignments(named: Named, other: Form) -> Form:
    """The value of a name; beside a list of assignments, `(x,y) = (1,2)` is one, too."""
    value, names = named.value, named.name.strip("()").split(",")
    if not isinstance(value, Group) or not isinstance(other, Group) or len(names) != len(value.items) or len(names) < 2:
        return value
    if not any(isinstance(item, Named) for item in other.items):
        return value
    return Group("", "", tuple(Named(name, item, "") for name, item in zip(names, value.items, strict=True)))


def _choices(gold: Form, found: Form, expressions: Expressions) -> bool:
    if isinstance(gold, Choice) and isinstance(found, Choice):
        return gold.letter == found.letter
    choice, other = (gold, found) if isinstance(gold, Choice) else (found, gold)
    assert isinstance(choice, Choice)
    if isinstance(other, Scalar) and other.latex.upper() == choice.letter:
        return True
    if choice.content is None:
        return False
    return equal(choice.content, found, expressions) if choice is gold else equal(gold, choice.content, expressions)


def _colons(gold: Colon, found: Colon) -> bool:
    a, b = ([Fraction(part) for part in one.parts] for one in (gold, found))
    if _is_time(gold) or found.half:
        if not gold.half or not found.half:
            return _clock(a, gold.half) == _clock(b, found.half) or a == b
        return gold.half == found.half and a == b
    if len(a) != len(b) or not all((*a, *b)):
        return a == b
    return all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


def _clock(parts: list[Fraction], half: str) -> tuple[Fraction, ...]:
    """Hours of 24, minutes and seconds."""
    hour = parts[0] % 12 + (12 if half == "pm" else 0) if half else parts[0]
    return (hour, *parts[1:], *[Fraction(0)] * (3 - len(parts)))


def _is_time(colon: Colon) -> bool:
    """Whether these may be hours and minutes: two digits behind each colon."""
    return bool(colon.half) or all(len(part) == 2 for part in colon.parts[1:])


def _groups(gold: Group, found: Group, expressions: Expressions) -> bool:
    if len(gold.items) != len(found.items) or len(gold.items) > _MOST_ITEMS:
        return False
    count = len(gold.items)
    names = [[item.name for item in group.items if isinstance(item, Named)] for group in (gold, found)]
    if all(len(set(group)) == count for group in names):
        return set(names[0]) == set(names[1]) and _unordered(gold.items, found.items, expressions)
    by_name = any(len({name.partition("_")[0] for name in group}) == count > 1 for group in names)
    if not by_name and not _brackets_agree(gold, found):
        return False
    if by_name or gold.opening not in ("", "{") or found.opening not in ("", "{"):
        return all(equal(a, b, expressions) for a, b in zip(gold.items, found.items, strict=True))
    return _unordered(gold.items, found.items, expressions)


def _brackets_agree(gold: Group, found: Group) -> bool:
    """Whether brackets say the same: a bare list may be either of a set and a tuple, which are not one another."""
    a, b = (group.opening + group.closing for group in (gold, found))
    if a == b or {a, b} <= {"", "{}"} or {a, b} <= {"()", "<>"}:
        return True
    if "" in (a, b):
        return {a, b} <= {"", "()"} or (len(gold.items) > 2 and {a, b} <= {"", "[]", "<>"})
    return len(gold.items) > 2 and {a, b} <= {"()", "[]", "<>"}


def _unordered(gold: tuple[Form, ...], found: tuple[Form, ...], expressions: Expressions) -> bool:
    left = list(found)
    for item in gold:
        match = next((i for i, other in enumerate(left) if equal(item, other, expressions)), None)
        if match is None:
            return False
        del left[match]
    return True


def _regions(gold: Form, found: Form, expressions: Expressions) -> bool:
    if isinstance(gold, Relation) or isinstance(found, Relation):
        latex = [one.latex for one in (gold, found) if isinstance(one, Region | Relation)]
        return len(latex) == 2 and all(latex) and expressions(*latex)
    a, b = (None if one is None else merged(one) for one in (_region(gold), _region(found)))
    if a is None or b is None or len(a) != len(b) or len(a) > _MOST_ITEMS:
        return False
    variables = [one.variable for one in (gold, found) if isinstance(one, Region) and one.variable]
    if len(set(variables)) > 1:
        return False
    left = list(b)
    for interval in a:
        match = next((i for i, other in enumerate(left) if _intervals(interval, other, expressions)), None)
        if match is None:
            return False
        del left[match]
    return True


def _region(form: Form) -> tuple[Interval, ...] | None:
    if isinstance(form, Region):
        return form.intervals
    interval = interval_of(form) if isinstance(form, Group) else None
    return None if interval is None else (interval,)


def _intervals(gold: Interval, found: Interval, expressions: Expressions) -> bool:
    if (gold.left_open, gold.right_open) != (found.left_open, found.right_open):
        return False
    for a, b in ((gold.low, found.low), (gold.high, found.high)):
        if a != b and (is_infinite(a) or is_infinite(b) or not expressions(a, b)):
            return False
    return True


def _scalars(gold: Scalar, found: Scalar, expressions: Expressions) -> bool:
    if in_short(gold.whole) == in_short(found.whole) != "":
        return True
    if (gold.whole or found.whole) and expressions(gold.whole or gold.latex, found.whole or found.latex):
        return True
    if gold.touching or (gold.measure and found.percent) or (gold.percent and found.measure):
        return False
    ratio = Fraction(1)
    if gold.measure and found.measure and gold.measure != found.measure:
        (unit, base), (other, other_base) = _in_base(gold.measure), _in_base(found.measure)
        if base != other_base:
            return False
        ratio = other / unit
    a, b = read_number(gold.latex), read_number(found.latex)
    if a is None or b is None:
        return gold.scale == found.scale == ratio == 1 and _expressions(gold, found, expressions)
    a, b = Number(a.value * gold.scale, a.decimals), Number(b.value * found.scale * ratio, b.decimals)
    if gold.percent == found.percent:
        return same_number(a, b)
    percent, plain = (a, b) if gold.percent else (b, a)
    hundredth = Number(percent.value / 100, None if percent.decimals is None else percent.decimals + 2)
    return same_number(hundredth, plain) or (same_number(percent, plain) and (gold.percent or abs(plain.value) > 1))


def _in_base(measure: str) -> tuple[Fraction, str]:
    """How many of the base of its kind a measure is: a kilometer is 1000 meters."""
    return next(((ratio, base) for (name, base), ratio in RATIOS.items() if name == measure), (Fraction(1), measure))


def _expressions(gold: Scalar, found: Scalar, expressions: Expressions) -> bool:
    if gold.percent == found.percent:
        return expressions(gold.latex, found.latex)
    plain, percent = (found, gold) if gold.percent else (gold, found)
    return expressions(plain.latex, f"\\frac{{{percent.latex}}}{{100}}") or expressions(plain.latex, percent.latex)
