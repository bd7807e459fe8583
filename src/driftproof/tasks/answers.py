r"""The final answer of a text: its last `\boxed{}`, the rest after its last `####`, or its last number.

Pure functions of the text; their time grows with its length alone, whatever it holds.
"""

import re

_TAIL_CHARACTERS = 2_000
"""Characters at the end of a response in which a number is looked for."""
# Escaped characters are matched so that their braces do not count.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
# A minus behind a digit, a letter or a bracket subtracts.
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-−])?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)/\d+|\.?\d+(?:e[-+]?\d+)?)", re.I
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces are closed; None where there is none."""
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


def after_hashes(text: str) -> str | None:
    """The text after the last `####`, up to the end of its line or of the next that is not empty; None without it."""
    _, marker, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if marker else None


def last_number(text: str) -> str | None:
    """The last number near the end, as it is written (`-1,234.5`, `3/4`, `$18`, `2e-5`); None where there is none."""
    numbers = _NUMBER.findall(tail(text))
    return numbers[-1].replace("−", "-") if numbers else None


def tail(text: str) -> str:
    """The end of a response, where an answer without a mark is looked for."""
    return text[-_TAIL_CHARACTERS:]
