r"""Units behind a number, which are no part of it: measures, and the nouns that are counted.

`12 \text{ cm}^2`, `60 km/h`, `5 apples` and `18.90 dollars` are 12, 60, 5 and 18.90. A letter that touches its number
is a factor (`5m`), and a sentence is no unit (`5 or 6`, `18 more than 2`).
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from driftproof.verify.answers.tables import LETTER_UNITS, MEASURES, NO_UNITS, PREPOSITIONS, SCALES

_UPRIGHT = r"(?:\\text\{[^{}]*\}(?:\s*\^\s*(?:\{-?\d\}|-?\d))?)"
_WORD = r"(?:[a-zA-Z][a-zA-Z'.\-]*[a-zA-Z]|[a-zA-ZµΩ¢])(?:\s*\^\s*(?:\{-?\d\}|-?\d))?"
_PLAIN = rf"{_WORD}(?:\s*/\s*{_WORD}|\s+{_WORD}){{0,5}}\.?"
_JOIN = r"(?:\s|\\cdot|/|\*|\\,)*"
_BEHIND = re.compile(
    rf"(?P<upright>(?:{_JOIN}{_UPRIGHT})+(?:\s+{_PLAIN})?)\s*$"
    rf"|(?<=[\d}}\])])(?P<degrees>\s*\^\s*(?:\{{\s*\\circ\s*\}}|\\circ)\s*(?:[CF]\b|\\text\{{\s*[CF]\s*\}})?)\s*$"
    rf"|(?P<plain>(?<=[\d.)}}\]])(?:\s*(?=[a-zA-Z]{{2}})|\s+){_PLAIN}\s*)$"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])[^+-]*\^\{\\circ\}$")
_ORDINAL = re.compile(
    r"(?!months?$)\w+(?:th|ths|rd|rds)(?<!yard)(?<!yards)(?<!card)(?<!cards)(?<!bird)(?<!birds)(?<!board)"
)
_NO_LETTERS = re.compile(r"(?:[^a-zA-Z]|\\[a-zA-Z]+)*")
_FRACTION = re.compile(rf"\\frac\{{\s*({_UPRIGHT})\s*\}}\{{\s*({_UPRIGHT})\s*\}}\s*$")
_CURRENCY = re.compile(
    r"^(-?)\s*(?:(?:USD|US|Rs\.?|EUR|GBP|RMB|INR)\s*(?=[\d$]|\\\$))?(?:\\?\$|[€£¥₹₽₩]|\\(?:euro|pounds?)\b)?\s*"
)
_MONEY_BEHIND = re.compile(r"(?<=\d)\s*(?:\\?\$|[€£¥₹₽₩])\s*$")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\{\s*(?:\\?%|per\s?cent(?:age)?(?: points)?|pct\.?)\s*\}"
    r"|per\s?cent(?:age(?: points)?)?|pct\.?)\s*$",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression, what it counts (its measure where one is known, else empty), and whether it is per hundred."""

    value: str
    measure: str = ""
    touching: bool = False
    percent: bool = False
    scale: Fraction = Fraction(1)


def quantity(text: str) -> Quantity:
    r"""The expression of an answer apart from its unit: `\frac{5}{2}\text{ hours}` is `\frac{5}{2}`, in hours."""
    text = text.strip()
    if _TRIGONOMETRY.search(text) and text.endswith("}"):
        return Quantity(text)  # the degrees of its argument
    without = _CURRENCY.sub(r"\1", text)
    money = "dollar" if without != text and "$" in text[: len(text) - len(without) + 1] else ""
    without = _MONEY_BEHIND.sub("", without)
    if percent := _PERCENT.search(without):
        return Quantity(without[: percent.start()].strip(), percent=True)
    without = _FRACTION.sub(r"\1/\2", without)
    found = _BEHIND.search(without)
    if not found or not without[: found.start()].strip():
        return Quantity(without, money)
    value = without[: found.start()].strip()
    if found["degrees"]:
        return Quantity(value, "deg")
    return _measured(without, value, found[0], money)


def _measured(whole: str, value: str, unit: str, money: str) -> Quantity:
    """The quantity of `value` and its unit, or the whole text where what follows the value is no unit."""
    upright, apart = "\\text" in unit, unit[:1].isspace()
    words = re.findall(r"[a-zA-Z¢µΩ][a-zA-Z¢'.\-]*", unit.replace("\\text", " ").replace("\\cdot", " "))
    names = [word.lower().rstrip(".") for word in words]
    if names[:1] == ["more"]:
        names = names[1:] or ["more"]  # `5 more days`
    if not names or names[0] in PREPOSITIONS or (names != ["times"] and any(map(_changes_number, names))):
        return Quantity(whole, money)
    if not upright and not (_NO_LETTERS.fullmatch(value) and _is_plain_unit(words[0], apart)):
        return Quantity(whole, money)
    if upright and len(words[0]) == 1 and words[0] not in LETTER_UNITS:
        return Quantity(whole, money)
    scale = Fraction(1)
    while names and names[0] in SCALES:
        scale *= SCALES[names.pop(0)]
    touching = not upright and not apart
    return Quantity(value, measure(" ".join(names), unit) or money, touching, scale=scale)


def _changes_number(name: str) -> bool:
    return (name in NO_UNITS and name not in SCALES) or bool(_ORDINAL.fullmatch(name))


def _is_plain_unit(word: str, apart: bool) -> bool:
    """Whether a word that is not set upright names something, rather than being a product of letters."""
    if len(word) == 1:
        return apart and word in LETTER_UNITS
    if word.lower().rstrip(".") in ("sq", "cu", "square", "cubic"):
        return True
    if _kind(word.lower().rstrip(".")) or word.lower() in SCALES:
        return True
    return apart and len(word) > 2 and bool(re.search(r"[aeiouyAEIOUY]", word))


def measure(name: str, unit: str) -> str:
    """One name of a known measure with its power and divisor (`cm^2`, `km/h`); empty where it is not known."""
    name = name.strip()
    power = re.search(r"\^\s*\{?(-?\d)", unit)
    exponent = power[1] if power else "2" if re.search(r"\bsq(?:uare)?\b", name) else "3" if "cubic" in name else ""
    name = re.sub(r"\b(?:square|sq|cubic)\b\.?", "", name)
    parts = [_kind(part) for part in re.split(r"\s+per\s+|/", name.strip())]
    if "/" in unit and len(parts) == 1:
        parts = [_kind(part) for part in name.split()]
    if not all(parts):
        return ""
    return "/".join(parts) + (f"^{exponent}" if exponent and exponent != "1" else "")


def _kind(name: str) -> str:
    name = name.strip()
    return MEASURES.get(name) or MEASURES.get(name.removesuffix("s")) or MEASURES.get(name.removesuffix("es")) or ""


def in_short(text: str) -> str:
    """A quantity of several units with one name for each: `5 ft 6 in` for `5 feet 6 inches`."""
    words = re.findall(r"[a-zA-Z]+|[^\sa-zA-Z]+", text.replace("\\text", " ").replace("{", " ").replace("}", " "))
    return " ".join(_kind(word.lower()) or word for word in words)
