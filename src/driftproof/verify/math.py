r"""Mathematical equality through Math-Verify: `\frac{1}{2}`, `0.5` and `1/2` are one answer.

Guarantees: what counts is the response's last complete `\boxed{}`; without one, what follows its last `####`; without
that, the last expression or number of its end. Only to be used through the process pool: a hostile answer
(`9^{9^{9}}`) makes it compute for ever, and the pool's time limit is the only one.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

try:
    from math_verify import parse, verify
except ImportError as error:
    raise ImportError(f"Math-Verify is missing ({error}); install it: pip install 'driftproof[math]'") from error

# It warns once in every process that its own time limits are off; the pool has the limit.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_TAIL_CHARACTERS = 2_000
"""How far from its end a response without a marked answer is searched; some of the patterns take quadratic time."""
# Escaped characters are matched so that their braces do not count.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def math(text: str, answer: str) -> float:
    """1.0 where the final answer of `text` is mathematically equal to `answer`, else 0.0.

    Raises:
        ValueError: `answer`, the gold one, cannot be read as mathematics.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        if boxed.strip() == answer.strip():
            return 1.0
        found = _parse(f"\\boxed{{{boxed}}}")
    else:
        _, marker, marked = text.rpartition("####")
        found = _parse(marked.strip().partition("\n")[0] if marker else text[-_TAIL_CHARACTERS:])
    # Verify catches what sympy cannot compare; two expressions it cannot compare are not shown to be equal.
    return float(verify(_parse_gold(answer), found, timeout_seconds=None))


def last_boxed(text: str) -> str | None:
    r"""What stands inside the last `\boxed{...}` whose braces are closed; None where there is none."""
    opened: list[int | None] = []
    last = slice(-1, -1)
    for brace in _BRACES.finditer(text):
        if brace.group().startswith("\\boxed"):
            opened.append(brace.end())
        elif brace.group() == "{":
            opened.append(None)
        elif brace.group() == "}" and opened:
            start = opened.pop()
            if start is not None and start > last.start:
                last = slice(start, brace.start())
    return text[last] if last.start >= 0 else None


@lru_cache(maxsize=1024)
def _parse_gold(answer: str) -> list[Any]:
    gold = _parse(f"\\boxed{{{answer}}}")
    if not gold:
        raise ValueError(f"the answer {answer!r} cannot be read as mathematics")
    return gold


def _parse(text: str) -> list[Any]:
    """Readings of the last expression of `text` (sympy objects, and the text itself); empty when there is none."""
    readings: list[Any] = parse(text, parsing_timeout=None)
    return readings
