r"""How the text of an answer is read as one of its forms.

Reading is by structure alone: what the expressions in an answer are worth is for Math-Verify to say.
"""

import re
from dataclasses import replace
from itertools import pairwise

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
from driftproof.verify.answers.intervals import as_interval, intersection, read_inequality
from driftproof.verify.answers.notation import clean, trimmed
from driftproof.verify.answers.numbers import read_number
from driftproof.verify.answers.spelling import closing, plain_mathematics
from driftproof.verify.answers.splitting import ENVIRONMENT, rows, sides_of, split, split_words
from driftproof.verify.answers.tables import BASES, MATHEMATICAL_WORDS, NUMBER_WORDS
from driftproof.verify.answers.units import quantity

_GROUPS = re.compile(r"(?<!\\)\$[^$]+(?<!\\)\$")
_JOINING = re.compile(r"\b(?:and|or)\b")
_DEEPEST = 6
_TEXT = r"(?:\\text\s*\{\s*)?"
_STATEMENT = re.compile(
    rf"^{_TEXT}(?:so\s+|thus,?\s+|therefore,?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|ans|result)\s*(?:is|:|=)\s*:?\s*\}}?",
    re.I,
)
_HARMLESS = re.compile(
    rf"^{_TEXT}(?:about|approximately|approx\.?|roughly|around|exactly|just|(?:a|the)?\s*total(?:\s+of)?)(?:\s*\}}|\s)\s*:?\s*"
    r"(?=[-+\\$\d.])",
    re.I,
)
_BEHIND = re.compile(
    r"(?<=\S)\s*(?:\(?\s*\\text\s*\{\s*\(?\s*"
    r"(?:approx\w*\.?|exact(?:ly)?|rounded[^{}]*|is the (?:final )?answer)\)?\s*\}\s*\)?|is the (?:final )?answer)\s*$",
    re.I,
)
_SIGN_IN_WORDS = re.compile(rf"^{_TEXT}(?:negative|minus)\s*\}}?\s*(?=[\d.\\])", re.I)
_ASIDE = re.compile(r"(?<=\S)[\s,]*\\text\s*\{\s*,?\s*\(?(?:where|for (?:some|all|any|every)|with)\b.*$")
_MODULUS = re.compile(r"\s*(?:\\pmod\s*(?:\{([^{}]*)\}|(\d))|\(\s*\\(?:b?mod|text\{\s*mod\s*\})\s*([^()]*)\))\s*$")
_SPELLED = re.compile(r"\\text\s*\{([^{}]*)\}")
_NUMBER_IN_TEXT = re.compile(r"(?:^|[\s($])[-+]?[.$]?\d")
_LIST_IN_TEXT = re.compile(r"\d|,|\b(?:and|or)\b")
_LETTER = re.compile(rf"\(?\s*{_TEXT}\(?\s*([A-Za-z])\s*\)?\s*\.?\s*\}}?\s*\)?")
_CHOICE = re.compile(
    rf"{_TEXT}(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])\s*:?\s*(?:\}}\s*)?"
    r"(?P<rest>(?!(?:\\text\s*\{)?\s*(?:(?:or|and|is|was|not|wrong|incorrect)\b|\([A-J]\)))"
    r"(?:(?<![)}])[^\s^+*/=<>_,;]|(?<=[)}])[\d\\$(]).*)",
    re.S,
)
_LETTERS = frozenset("ABCDEFGHIJabcdefghij")
_OPTION = re.compile(rf"{_TEXT}(?:option|choice)\s+\(?([A-Ja-j])\)?\s*\}}?", re.I)
_COLON = re.compile(rf"(-?\d+(?:\.\d+)?)((?:\s*:\s*-?\d+(?:\.\d+)?)+)\s*{_TEXT}(?:([aApP])\s*\.?\s*[mM]\.?)?\s*\}}?")
_RATIO_IN_WORDS = re.compile(r"(?<=\d)\s*\\text\s*\{\s*to\s*\}\s*(?=\d)")
_DIGITS = rf"{_TEXT}\(?(\d[0-9A-Fa-f]*|[A-F]+\d[0-9A-F]*)\)?\s*\}}?\s*"
_BASED = (
    re.compile(rf"{_DIGITS}_\s*(?:\{{\s*)?{_TEXT}(\d+|{'|'.join(BASES)})\s*\}}*"),
    re.compile(rf"{_DIGITS}\(?\s*{_TEXT}\(?\s*(?:in\s+)?base[\s-]+(\d+|{'|'.join(BASES)})\s*\)?\s*\}}?\s*\)?"),
)
_FIRST_WORD = re.compile(rf"{_TEXT}([a-zA-Z]{{3,}}|[A-Z]{{2}})(?![a-zA-Z]*\s*(?:[(^_=+*/]|\s-|-\s|-\d))")
_SENTENCE = re.compile(r"[a-zA-Z]{1,2}\s+([a-zA-Z]{3,})(?:\s+[a-zA-Z]|\s*$)")
_NAME = re.compile(
    r"(?:[a-zA-Z](?:\s*\([^()]*\))?|\\(?!text|frac|sqrt|sum|int|le|ge|ne|in|pm|pi(?![a-zA-Z]))[a-zA-Z]+"
    r"|(?<=[}\w'])\([a-zA-Z\\,\s]*\)|\\frac\{\s*d?[a-zA-Z]+\s*\}\{\s*d?[a-zA-Z]+\s*\}|\\text\s*\{[^{}\d]*\}|_\s*(?:\{[^{}]*\}|\w)"
    r"|['{}\s|:+*/-])+"
)
_TUPLE_OF_NAMES = re.compile(r"\(\s*[a-zA-Z](?:_\{?\w\}?)?(?:\s*,\s*[a-zA-Z](?:_\{?\w\}?)?)+\s*\)")
_LABEL = re.compile(r"\\text\s*\{[^{}\d]*\}\s*|[a-zA-Z]{3,}(?:\s+[a-zA-Z]{2,})*\s*")
_WORDED = re.compile(r"\\text\s*\{|(?<![\\a-zA-Z{])[a-zA-Z]{3,}|[\d)}]\s+[a-zA-Z]+(?:_\{?\w\}?)?\s*\(?\w*\)?$")
"""Words within a chain of equations, or a value and the next name: it is no chain."""
_LABELED = re.compile(r"\\text|=.*\d|=\s*[+-]?\s*\\(?:pi|infty)")
_COUNTING = re.compile(r"[\^_]\s*(?:\{[^{}]*\}|\d)|\([^()]*\)")
_EQUALS = re.compile(r"(?<![<>!\\])=(?!=)")
_ORDER = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]")
_MEMBER = re.compile(r"^\s*([a-zA-Z](?:_\{?\w+\}?)?|\([a-z,\s]+\))\s*\\in(?![a-zA-Z])")
_BUILDER = re.compile(
    r"^\s*[a-zA-Z](?:\s*\\in\s*\\mathbb\s*\{?\s*[RQZ]\s*\}?)?\s*(?:\||:|\\text\{\s*such that\s*\})\s*"
    r"(?=.*[<>=]|.*\\(?:le|ge|ne|in)\b)"
)
_FOLLOWS = tuple(
    f"\\{name}" for name in ("implies", "Rightarrow", "Longrightarrow", "iff", "Leftrightarrow", "rightarrow")
)
"""Arrows in front of what follows from the text before."""
_APPROX = re.compile(r"\\(?:approx|simeq|doteq|sim)(?![a-zA-Z])")
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,]*\d)")
_OUTWARD = re.compile(r"(?=\]|.*\[$)([\[\]])([^\[\]]+[,;][^\[\]]+)([\[\]])")
"""Intervals whose open ends have brackets that look outward: `]2, 7[`."""
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_REALS_WITHOUT = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\text\s*\{ except \}|-)(?=\s*\\\{)")
_ALL_REALS = re.compile(rf"{_TEXT}(?:all )?real(?:s| numbers?)\s*\}}?|\\mathbb\s*\{{?\s*R\s*\}}?", re.I)


def read(text: str) -> Form | None:
    """The form of an answer as it stands in a text; None where it says nothing."""
    between = _GROUPS.split(text)[1:-1]
    if any(re.search(r"[a-zA-Z]{2,}", _JOINING.sub("", part)) for part in between):
        return Words("".join(clean(text).split()))  # formulas in a sentence, which is compared as a whole
    return _read(clean(text), _DEEPEST)


def _read(text: str, deep: int) -> Form | None:
    text = trimmed(text)
    text = _SPELLED.sub(lambda found: f" {found[1]} " if _is_list(found, text) else found[0], text).strip()
    text = trimmed(_HARMLESS.sub("", _STATEMENT.sub("", _BEHIND.sub("", text))))
    if not text or deep < 0:
        return None
    if read_number(text):
        return Scalar(text)
    if signed := _SIGN_IN_WORDS.match(text):
        return _read("-" + text[signed.end() :], deep - 1)
    if text == "\\emptyset":
        return Group("{", "}", ())
    if ENVIRONMENT.match(text):
        return _together("", "", rows(text), deep)
    text = trimmed(_ASIDE.sub("", next(reversed(split(text, *_FOLLOWS)), "")))
    if not text:
        return None
    if modulus := _MODULUS.search(text):
        return _of_modulus(_read(text[: modulus.start()], deep - 1), modulus)
    return _special(text, deep) or _compound(text, deep) or _single(text)


def _of_modulus(form: Form | None, modulus: re.Match[str]) -> Form | None:
    """A number with its modulus, which is compared like a measure: `3 (mod 5)` is 3, and not 3 modulo 7."""
    number = modulus.group(1) or modulus.group(2) or modulus.group(3)
    return replace(form, measure=f"mod {number}") if isinstance(form, Scalar) else form


def _is_list(spelled: re.Match[str], text: str) -> bool:
    """Whether upright text is to be read like any other: it has numbers in it, or is a list and all there is."""
    return bool(_NUMBER_IN_TEXT.search(spelled[1])) or (spelled[0] == text and bool(_LIST_IN_TEXT.search(spelled[1])))


def _special(text: str, deep: int) -> Form | None:
    """Choices, ratios, times, numbers with a base."""
    if (found := _LETTER.fullmatch(text)) and found[1] in _LETTERS and (found[1].isupper() or not text.isalpha()):
        return Choice(found[1].upper())
    if found := _OPTION.fullmatch(text):
        return Choice(found[1].upper())
    if found := _CHOICE.fullmatch(text):
        return Choice((found[1] or found[2]).upper(), _read(found["rest"], deep - 1))
    if found := _COLON.fullmatch(_RATIO_IN_WORDS.sub(":", text)):
        parts = (found[1], *(part.strip() for part in found[2].split(":")[1:]))
        return Colon(parts, f"{found[3].lower()}m" if found[3] else "")
    if found := next((found for form in _BASED if (found := form.fullmatch(text))), None):
        return Based(found[1].lower().lstrip("0") or "0", BASES.get(found[2], found[2]))
    return None


def _compound(text: str, deep: int) -> Form | None:
    """Lists, sets, tuples, intervals, unions, assignments and relations."""
    text = _THOUSANDS.sub(lambda found: found[1].replace(",", ""), text)
    if outward := _OUTWARD.fullmatch(text):
        opening, closer = "(" if outward[1] == "]" else "[", ")" if outward[3] == "[" else "]"
        return _together(opening, closer, split(outward[2], ",", ";"), deep)
    if len(parts := split_words(text)) > 1:
        decimal = text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else ""
        return _together("", "", parts, deep, joined_by_and=" and" in text, decimal=decimal)
    if _ALL_REALS.fullmatch(text):
        return Region("", (Interval("-\\infty", "\\infty", True, True),), "\\mathbb{R}")
    if _is_words(text):
        return None
    if len(parts := split(text, r"\cup")) > 1:
        return _union(parts, text, deep) or Relation(text)
    if found := _MEMBER.match(text):
        value = _read(text[found.end() :], deep - 1)
        return Named(_name(found[1]), value, text) if value else None
    if without := _REALS_WITHOUT.match(text):
        return _reals_without(_read(text[without.end() :], deep - 1), text)
    if bracketed := _bracketed(text, deep):
        return bracketed
    if _ORDER.search(text):
        return read_inequality(text) or Relation(plain_mathematics(text))
    return _equation(text, deep)


def _together(
    opening: str, closer: str, parts: list[str], deep: int, *, joined_by_and: bool = False, decimal: str = ""
) -> Form | None:
    """A list of what its parts say, one region of inequalities, or the one thing that all parts say."""
    items = tuple(item for part in parts if (item := _read(part, deep - 1)))
    if opening == "" and (len(items) == 1 or (items and _one_number(items))):
        return items[0]
    regions = [item for item in items if isinstance(item, Region)]
    if opening == "" and items and len(regions) == len(items) and regions[0].variable:
        return _one_region(regions, joined_by_and)
    flat: list[Form] = []
    for item in _without_repetitions(items) if opening == "{" else items:  # "1, 2 \pm 3" is one list
        flat.extend(item.items if opening in ("", "{") and isinstance(item, Group) and item.opening == "" else (item,))
    if all(isinstance(item, Group) for item in flat):
        flat = list(dict.fromkeys(flat))
    return _tuples_of_names(Group(opening, closer, tuple(flat), decimal))


def _one_number(items: tuple[Form, ...]) -> bool:
    values = set()
    for item in items:
        number = read_number(item.latex) if isinstance(item, Scalar) else None
        if number is None:
            return False
        values.add(number.value / 100 if isinstance(item, Scalar) and item.percent else number.value)
    return len(values) == 1


def _without_repetitions(items: tuple[Form, ...]) -> tuple[Form, ...]:
    return tuple(dict.fromkeys(items))


def _one_region(regions: list[Region], joined_by_and: bool) -> Form | None:
    if any(one.variable != regions[0].variable for one in regions):
        return Group("", "", tuple(regions))
    if both := intersection(regions):
        return both
    if joined_by_and and all(len(one.intervals) == 1 for one in regions):
        return Group("", "", tuple(regions))
    return Region(regions[0].variable, tuple(interval for region in regions for interval in region.intervals))


def _tuples_of_names(group: Group) -> Group:
    """Tuples for assignments that begin anew: `p=2, q=3, p=5, q=1` are two solutions."""
    names = [item.name if isinstance(item, Named) else "" for item in group.items]
    period = names.index(names[0], 1) if names and names[0] and names[0] in names[1:] else 0
    if period < 2 or len(names) % period or names != names[:period] * (len(names) // period):
        return group
    chunks = [group.items[start : start + period] for start in range(0, len(names), period)]
    return Group(group.opening, group.closing, tuple(Group("(", ")", chunk) for chunk in chunks))


def _union(parts: list[str], text: str, deep: int) -> Region | None:
    intervals: list[Interval] = []
    variable = ""
    for part in parts:
        one = _read(part, deep - 1)
        if isinstance(one, Named):
            variable, one = one.name, one.value
        if isinstance(one, Region):
            intervals.extend(one.intervals)
        elif isinstance(one, Group) and (interval := interval_of(one)):
            intervals.append(interval)
        else:
            return None
    return Region(variable, tuple(intervals), text)


def _reals_without(points: Form | None, text: str) -> Form:
    """The region of all numbers but some."""
    items = points.items if isinstance(points, Group) else (points,)
    latex = [item.latex for item in items if isinstance(item, Scalar)]
    numbers = {one: number.value for one in latex if (number := read_number(one))}
    if len(latex) != len(items) or (len(latex) > 1 and len(numbers) < len(latex)):
        return Relation(text)
    ends = ["-\\infty", *sorted(latex, key=lambda one: numbers.get(one, 0)), "\\infty"]
    return Region("", tuple(Interval(low, high, True, True) for low, high in pairwise(ends)), text)


def interval_of(group: Group) -> Interval | None:
    """The interval that a group of two in round or square brackets can be read as."""
    if len(group.items) != 2 or not all(isinstance(item, Scalar) for item in group.items):
        return None
    low, high = (item.latex for item in group.items if isinstance(item, Scalar))
    return as_interval(group.opening, low, high, group.closing)


def _bracketed(text: str, deep: int) -> Form | None:
    """The contents of one pair of brackets around all of the text."""
    for opening, closer in (("\\{", "\\}"), ("\\langle", "\\rangle")):
        if text.startswith(opening) and text.endswith(closer) and opening not in text[len(opening) :]:
            inside = text[len(opening) : -len(closer)].strip()
            if builder := _BUILDER.match(inside):
                return _read(inside[builder.end() :], deep - 1)
            kind = "{}" if opening == "\\{" else "<>"
            return _together(kind[0], kind[1], split(inside, ",", ";"), deep)
    if text[0] not in "([" or closing(text, 0) != len(text) - 1:
        return None
    parts = split(text[1:-1], ",", ";")
    if len(parts) > 1:
        return _together(text[0], text[-1], parts, deep)
    return _read(text[1:-1], deep - 1) if text[0] + text[-1] in ("()", "[]") else None


def _equation(text: str, deep: int) -> Form | None:
    """An assignment by its name and value, a true chain of numbers by its last, any other equation as it is."""
    exact, *rounded = _APPROX.split(text)
    sides = sides_of(exact)
    if rounded and ((len(sides) == 1 and _NAME.fullmatch(sides[0])) or not sides[-1]):
        sides, rounded = [*sides, rounded[-1]], []
    if len(sides) < 2:
        return _read(exact, deep - 1) if rounded else _plus_minus(text, deep)
    first, last = sides[0], sides[-1]
    if any(_WORDED.search(side) for side in sides[1:-1]):
        return Words(normal_words(text))
    if not last:
        return Words(text)  # nothing is said to be equal
    if not first:
        return _read(last, deep - 1)
    if len({number.value for side in sides if (number := read_number(side))}) > 1:
        return Words(text)
    return _assignment(first, last, text, len(sides), deep)


def _assignment(first: str, last: str, text: str, sides: int, deep: int) -> Form | None:
    value, latex = _read(last, deep - 1), plain_mathematics(text)
    if value is None:
        return None
    if _LABEL.fullmatch(first) and first.strip() not in MATHEMATICAL_WORDS and _LABELED.search(text):
        return value
    if first.startswith("-"):
        return Relation(latex, "" if read_number(last) else plain_mathematics(last))
    if _NAME.fullmatch(first) or _TUPLE_OF_NAMES.fullmatch(first):
        return Named(_name(first), value, latex)
    if sides == 2 and _NAME.fullmatch(last) and (swapped := _read(first, deep - 1)):
        return Named(_name(last), swapped, latex)
    if not _has_letters(first) and not _has_letters(last):
        return value
    counted = re.search(r"\d", _COUNTING.sub("", first))
    return Relation(latex, "" if read_number(last) and counted else plain_mathematics(last))


def _plus_minus(text: str, deep: int) -> Form | None:
    r"""The two values of an expression with `\pm`."""
    if "\\pm" not in text or re.search(r"\\pm.*\\pm", text):
        return None
    signs = (("+", "-"), ("-", "+"))
    both = [re.sub(r"\\pm(?![a-zA-Z])", a, re.sub(r"\\mp(?![a-zA-Z])", b, text)).lstrip("+ ") for a, b in signs]
    return _together("", "", both, deep)


def _single(text: str) -> Form:
    if _is_words(text):
        words = normal_words(text)
        return Group("{", "}", ()) if words in ("no solution", "none") else Words(words)
    found = quantity(text)
    latex = plain_mathematics(found.value)
    whole = plain_mathematics(text) if found.value != text else ""
    return Scalar(latex, whole, found.measure, found.touching, found.percent, found.scale)


def _is_words(text: str) -> bool:
    """Whether an answer is in words, which say more than the numbers in them."""
    if _EQUALS.search(text):
        return False
    sentence = _SENTENCE.match(text)
    if sentence and sentence[1].lower() not in MATHEMATICAL_WORDS:
        return True
    first = _FIRST_WORD.match(text)
    return text.startswith("\\text") or bool(first and first[1].lower() not in MATHEMATICAL_WORDS)


def normal_words(text: str) -> str:
    """Words without case, punctuation, article and plural; numbers in figures; signs of mathematics stay."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).casefold()
    words = re.findall(r"[^\W_]+|[<>=]|(?<!\w)[-+]|[-+](?!\w)", re.sub(r"\b(?:the|an?)\s+(?=\w)", "", text))
    return " ".join(NUMBER_WORDS.get(word, _singular(word)) for word in words)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 4 and word.endswith("s") and not word.endswith("ss") else word


def _name(text: str) -> str:
    return re.sub(r"[{}\s]", "", text)


def _has_letters(text: str) -> bool:
    """Whether an expression has variables, or is no mathematics."""
    text = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}", "", text)
    plain = re.sub(r"\\[a-zA-Z]+", "", re.sub(r"\\text\s*\{[^{}]*\}", "", plain_mathematics(text)))
    return bool(re.search(r"[a-zA-Z]", plain))
