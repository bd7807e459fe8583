"""The forms that an answer can have: an expression, words, a choice, a list, a region, a ratio, an equation."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Scalar:
    """An expression with one value, perhaps of some measure."""

    latex: str
    whole: str = ""
    """The expression with what was taken for its unit."""
    measure: str = ""
    touching: bool = False
    """Whether the unit is of slanted letters that touch the number: `7km` may be a product."""
    percent: bool = False
    scale: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words: equal to the same words alone."""

    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter of multiple choice, perhaps with what stands behind it: `(C) 12`."""

    letter: str
    content: "Form | None" = None


@dataclass(frozen=True, slots=True)
class Group:
    """Several answers; their order counts within round, square and angle brackets."""

    opening: str
    closing: str
    items: tuple["Form", ...]
    decimal: str = ""
    """The number that it is where a comma is the decimal point: `2,74`."""


@dataclass(frozen=True, slots=True)
class Named:
    """An answer with the name that it was given: `x = 5`."""

    name: str
    value: "Form"
    latex: str
    """The whole equation."""


@dataclass(frozen=True, slots=True)
class Colon:
    """A ratio or a time of day: `2:3`, `8:34`."""

    parts: tuple[str, ...]
    half: str = ""
    """The half of the day, `am` or `pm`, where it is said."""


@dataclass(frozen=True, slots=True)
class Based:
    """A number in a base: `2516_8`."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality that names no value; `last` is its last side where that may be its answer."""

    latex: str
    last: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers between two ends, which are LaTeX; an open end is not among them."""

    low: str
    high: str
    left_open: bool
    right_open: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals, the variable that is said to lie in it (empty: none), and how it was written."""

    variable: str
    intervals: tuple[Interval, ...]
    latex: str = ""


Form = Scalar | Words | Choice | Group | Named | Colon | Based | Relation | Region
