"""Whether a sentence claims an expression in it: it may deny it, ask for it, suppose it or compute with it."""

import re

_NEAR = 60
"""Characters around an expression that are looked at."""
_FIRST_OF_TWO = r"(?:feet|foot|ft|hours?|hrs?|minutes?|min|pounds?|lbs?|yards?|years?|months?|weeks?|days?|dollars?)"
"""The unit of the first part of a quantity in two: `5 feet 3 inches`."""
_DENIED = re.compile(
    r"(?:(?:\b(?:not|cannot|never|nor|neither)|n't)\s+(?:be\s+|equal\s+(?:to\s+)?|=\s*)?|\bneither\b[^.]*"
    r"|\banything\s+but\s+|\b(?:might|may|could)\s+(?:also\s+)?be\s+"
    r"|\b(?:greater|less|more|fewer|larger|smaller|higher|lower|bigger)\s+than\s+)[\s*$_(\"']*$",
    re.I,
)
_OPERAND = re.compile(
    r"(?:\b(?:twice|thrice|double|triple|half)\s+(?:of\s+)?"
    r"|\b(?:square|cube|root|third|quarter|multiple|factor|power)s?\s+(?:root\s+)?of\s+"
    r"|\b(?:divided|divisible|multiplied|increased|decreased)\s+by\s+|(?:%|\bpercent)\s+of\s+"
    r"|\d[*$_)]{0,2}\s+(?:in|to|of|out\s+of)\s+"
    rf"|\d\s*{_FIRST_OF_TWO}\s*(?:,|and)?\s*"
    r"|\b(?:times|plus|step|part|question|problem|case|equation|line|page|figure|example)\s+)[\s*$_(\"']*$",
    re.I,
)
_REFUTED = re.compile(
    r"[\s*$_)]*(?:(?:is|are|was)\s*(?:not\b|n't)"
    r"|(?:is|was|would\s+be)\s+(?:also\s+|an?\s+|the\s+)?(?:wrong|incorrect|false)\b)",
    re.I,
)
_CONTINUED = re.compile(
    r"[\s*$_)]*(?:(?:times|divided|multiplied|plus|minus)\b|(?:more|less|fewer)\s+than\b|out\s+of\b"
    r"|(?:of|in|to)\s+\W?\d"
    r"|and\s+(?:a|one|two|three|five|seven)[\s-]+(?:half|halves|quarters?|\w+(?:rd|th)s?)\b"
    r"|(?:squared|cubed|factorial|doubled|tripled|halved|choose|mod(?:ulo)?|to\s+the\s+power)\b"
    r"|(?:%|percent)\s+(?:more|less)\b"
    r"|(?:halves|quarters?|thirds|fourths|fifths|sixths|eighths|tenths|hundredths|dozens)\b"
    rf"|{_FIRST_OF_TWO}\s*(?:,|and)?\s*\d|(?:and\s+)?for\s+(?:part\s*)?\([b-z]\))",
    re.I,
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b", re.I)
_BOUND = re.compile(r"\bat\s+(?:least|most)\s+[\s*$_(]*$", re.I)
_SIGN = re.compile(r"(?<!\d)(?<!\d[\s$])\b(?:negative|minus)\s+[\s*$_]*$", re.I)
_SUPPOSED = re.compile(r"^\W*(?:if|suppose|assume|assuming|unless|i\s+doubt)\b(?!.*(?:,|\bthen\b))", re.I | re.S)
_SENTENCE_END = re.compile(r"[.!?](?<!\b[ie]\.[eg]\.)(?=\s|\*|$)|\n")


def is_claimed(text: str, start: int, end: int, ordinals: bool = False) -> bool:
    """Whether the sentence around this span says that it is so; an ordinal (`3rd`) only where they are asked for."""
    before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    if _DENIED.search(before) or _REFUTED.match(after):
        return False
    if "=" not in text[start:end] and (_OPERAND.search(before) or _CONTINUED.match(after)):
        return False
    if (not ordinals and _ORDINAL.match(after)) or (_BOUND.search(before) and not re.match(r"[\s*$_)]*\w", after)):
        return False
    stop = _SENTENCE_END.search(after)
    if stop and stop.group() == "?":
        return False
    begins = [found.end() for found in _SENTENCE_END.finditer(text, max(0, start - 4 * _NEAR), start)]
    return not _SUPPOSED.match(text[begins[-1] if begins else max(0, start - 4 * _NEAR) : start])


def sign_in_words(text: str, start: int) -> str:
    """The sign that is said in words in front of a number: `minus 5`, but not `7 minus 5`."""
    return "-" if _SIGN.search(text[max(0, start - _NEAR) : start]) else ""
