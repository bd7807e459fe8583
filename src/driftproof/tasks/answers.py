r"""The marks of a final answer in a text: `\boxed{}`, `####`, or its last number.

Pure functions of the text; their time grows with its length alone, whatever it holds.
"""

import re
from dataclasses import dataclass

_TAIL_CHARACTERS = 2_000
"""Characters at the end of a response in which an answer without a mark is looked for."""
# Escaped characters are matched so that their braces do not count.
_BRACES = re.compile(r"\\{1,2}(?:f?boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s?(-?\d[\d.,]*\d|-?\d)")
# A minus behind a digit, a letter or a bracket subtracts.
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-−+])?\$?"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)(?:\.\d+)?"  # 1,234,567.8
    r"|\d{1,3}(?: \d{3})+(?! ?\d)(?:\.\d+)?"  # 1 234 567
    r"|(?:\d+ )?\d+/\d+"  # 3/4, 3 1/2
    r"|\d*\.?\d+(?:e[-+]?\d+)?)",
    re.I,
)
_WRAPPINGS = re.compile(
    r"\\(?:text\w*|math\w+|mbox|hbox|boxed|fbox|left|right|quad|qquad|displaystyle|[,;:! ])|(?<!\\)[{}]|[$()\s.,;:*_~]"
)

_MARKED_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)(?![a-zA-Z])")
_COUNTED = re.compile(r"[$€£]?\s*([-+]?\d*\.?\d+(?:/\d+)?)\s*(?:%|[a-zA-Z][a-zA-Z '/.-]*)?\.?")


@dataclass(frozen=True, slots=True)
class Box:
    r"""One closed `\boxed{}` and the place where it stands."""

    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    r"""The closed boxes of a text (`\boxed`, `\fbox`), in order; of boxes in each other the innermost alone."""
    opened: list[tuple[int, int] | None] = []
    found: list[Box] = []
    for brace in _BRACES.finditer(text):
        token = brace.group()
        if token.endswith("{") and len(token) > 2:
            opened.append(brace.span())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened and (start := opened.pop()) and not (found and found[-1].start > start[0]):
            found.append(Box(start[0], brace.end(), text[start[1] : brace.start()]))
    return found or [Box(*box.span(), box.group(1)) for box in _BARE_BOX.finditer(text)]


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces are closed; None where there is none."""
    found = boxes(text)
    return found[-1].content if found else None


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


def says_nothing(answer: str) -> bool:
    r"""Whether an answer is wrapping alone, such as `\text{}`: nothing that a response could be equal to."""
    return not _WRAPPINGS.sub("", answer)


def gsm8k_gold(answer: str) -> str | None:
    """The number of a worked answer in GSM8K's form: that behind the last `####`, without commas, its unit and further
    lines; None where nothing is there."""
    gold = (after_hashes(answer) or "").replace(",", "").strip()
    found = _COUNTED.fullmatch(gold)
    return None if says_nothing(gold) else found[1] if found else gold


def solution_gold(solution: str) -> str | None:
    r"""The answer of a worked solution: its last closed `\boxed{}`, or all of a text without one; None where that says
    nothing."""
    gold = last_boxed(solution) if _MARKED_BOX.search(solution) else solution
    return None if gold is None or says_nothing(gold) else gold.strip()
