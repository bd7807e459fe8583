r"""Mathematical equality through Math-Verify: `\frac{1}{2}`, `0.5` and `1/2` are one answer.

Four verifiers, which differ in where they look for the final answer: `boxed` in the last complete `\boxed{}`, `hashes`
behind the last `####`, `number` at the last number, and `math` in the first of these places that the response has (for
the last, any expression near the end). Only to be used through the process pool: a hostile answer (`9^{9^{9}}`) makes
them compute for ever, and the pool's time limit is the only one.
"""

import logging
import re
from functools import lru_cache
from math import floor, log10
from typing import Any

try:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError(f"Math-Verify is missing ({error}); install it: pip install 'driftproof[math]'") from error

from driftproof.tasks.answers import after_hashes, last_boxed, last_number, tail

# It warns once in every process that its own time limits are off; the pool has the limit.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_LONGEST_EXPRESSION = 2_000
"""Characters; a longer answer is compared as text only, for some of Math-Verify's patterns take quadratic time."""
_SMALL = 1e-3
"""Numbers below this are compared by their first digits."""
# Boxes are found here, by counting braces; Math-Verify's own patterns for them can take minutes on a single line.
_LATEX = LatexExtractionConfig(boxed_match_priority=-1)
# In this order: 4.5e33 is a number (Math-Verify reads e as Euler's), 1./3 is 1/3, and dollars inside are no delimiters.
_NOTATION = (
    (re.compile(r"(?<![\w.}])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?![\w.{^])"), r"\1 \\times 10^{\2}"),
    (re.compile(r"(?<=\d)\.(?!\d)"), ""),
    (re.compile(r"(?<!\\)\$|\\[()\[\]]|\n"), " "),
    (re.compile(r"\bnp\.(?=[a-z])"), r"\\"),
)


def math(text: str, answer: str) -> float:
    r"""1.0 where the final answer of `text` is mathematically equal to `answer`, else 0.0.

    What counts is the last `\boxed{}`, without one the last `####`, without that the last expression. ValueError
    where `answer`, the gold one, cannot be read as mathematics.
    """
    if (found := last_boxed(text)) is not None:
        return _equal(found, answer)
    marked = after_hashes(text)
    return _equal_prose(tail(text) if marked is None else marked, answer)


def boxed(text: str, answer: str) -> float:
    r"""Like `math`, but an answer outside `\boxed{}` does not count."""
    found = last_boxed(text)
    return 0.0 if found is None else _equal(found, answer)


def hashes(text: str, answer: str) -> float:
    """Like `math`, but an answer that does not follow `####` does not count."""
    found = after_hashes(text)
    return 0.0 if found is None else _equal_prose(found, answer)


def number(text: str, answer: str) -> float:
    """Like `math`, but the answer is the last number, wherever it stands."""
    found = last_number(text)
    return 0.0 if found is None else _equal(found.replace("$", ""), answer)


def _equal(found: str, answer: str) -> float:
    """Whether two expressions are equal; two that Math-Verify cannot compare are not shown to be."""
    if found.strip() == answer.strip():
        return 1.0
    return _compare(_gold(answer), _expression(found))


def _equal_prose(text: str, answer: str) -> float:
    """Whether the last expression of a passage equals `answer`."""
    readings = parse(text, (_LATEX, ExprExtractionConfig()), parsing_timeout=None)
    return _compare(_gold(answer), readings)


def _compare(gold: list[Any], found: list[Any]) -> float:
    scale = _scale(gold[0])
    if scale != 1:
        gold, found = ([reading * scale for reading in side if not isinstance(reading, str)] for side in (gold, found))
    return float(verify(gold, found, timeout_seconds=None))


def _scale(gold: Any) -> int:
    """The factor that brings a small number to at least 1: Math-Verify always compares six decimal places."""
    value = gold.doit().evalf() if getattr(gold, "is_number", False) else None
    if value is not None and value.is_Float and 0 < (size := abs(float(value))) < _SMALL:
        return int(10 ** -floor(log10(size)))
    return 1


@lru_cache(maxsize=1024)
def _gold(answer: str) -> list[Any]:
    gold = _expression(answer)
    if not gold:
        raise ValueError(f"the answer {answer!r} cannot be read as mathematics")
    return gold


def _expression(text: str) -> list[Any]:
    """Readings of one expression (a sympy object, and the text itself); empty when there is none."""
    if len(text) > _LONGEST_EXPRESSION:
        return []
    for pattern, replacement in _NOTATION:
        text = pattern.sub(replacement, text)
    readings: list[Any] = parse(f"$ {text} $", (_LATEX,), parsing_timeout=None)
    return readings
