r"""The mathematics in a sentence: its expressions, in order, with what joins them.

`So x = 2 or x = 3.` has one answer of two parts; `The area is 3\pi.` has `3\pi`; `We had $18$ eggs and one more, so
19.` has 18, and then 19.
"""

import re
from dataclasses import dataclass

from driftproof.verify.answers.claims import is_claimed, sign_in_words

_DELIMITED = (
    r"\$\$(?:[^$]|\\\$){1,600}?(?<!\\)\$\$"
    r"|\\\[(?:[^\\]|\\(?!\])){1,600}?\\\]"
    r"|\\\((?:[^\\\n]|\\(?!\))){1,400}?\\\)"
    r"|\\begin\{(?P<kind>[a-z]+\*?)\}.{1,600}?\\end\{(?P=kind)\}"
    r"|(?<!\\)\$(?!\$)(?:\\\$|[^$\n]){1,400}?(?<!\\)\$(?!\d)"
)
GROUP = re.compile(_DELIMITED, re.S)
"""Mathematics between delimiters."""
_TOKEN = re.compile(
    rf"(?P<group>{_DELIMITED})"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?![\d,]*\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?! ?\d)(?:\.\d+)?"
    r"|\d+ \d+/\d+(?!\d)|\d+(?:\.\d+)?(?:[eE][-+]?\d+(?!\w))?|\.\d+)"
    r"|(?P<money>(?:US)?\\?\$|[€£¥₹])"
    r"|(?P<command>\\(?:[a-zA-Z]+|[{}%!,;:| ]))"
    r"|(?P<function>(?:sqrt|sin|cos|tan|log|ln|exp|pi|infinity|theta)(?![a-zA-Z]))"
    r"|(?P<word>[^\W\d_]{2,}(?:['’-][^\W\d_]+)*(?:\s?\^\s?\{?-?\d\}?)?)"
    r"|(?P<letter>[a-zA-Z])"
    r"|(?P<operator>\*\*|[-+*/^=<>_|!%]|:(?!\s)|(?<=\s):|(?<=[a-zA-Z])')"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<comma>,)"
    r"|(?P<space>\s+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_MATRIX = re.compile(r"\\begin\{(?:[a-z]*matrix|array)\}")
_FEW = 250
"""Characters at the end of a text in which its last expression is looked for first, from the start of their line."""
_FEW_EXPRESSIONS = 12
_PHRASE = re.compile(r"\b(?:in|of|per|for\s+(?:each|every|all)|after|every|each)\s+(?:the\s+)?[$]?$", re.I)
_REASON = re.compile(r"^[^.!?\n]*\b(?:since|because)\b[^.!?\n]*$", re.I)
"""A reason for what stands in front of it."""
_NEW_CLAIM = re.compile(
    r"[.!?\n](?:\s|$)|[,;:]|\b(?:so|thus|therefore|hence|then|which|leaves?|leaving|makes?|is|are|was|were|gives?|equals?"
    r"|totals?|and|or|but|remain\w*|has|have|gets?|needs?|costs?|pays?)\b",
    re.I,
)
"""Words that begin another claim, between two expressions of a sentence."""
_WORDS_IN_MATHEMATICS = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{3,}\s+[a-zA-Z]{2,}|^\d[\d.,]*\s+[a-zA-Z]{2,}\s")
_JOINS = re.compile(r"\s*(?:,|,?\s*(?:and|or)|;)\s*")
_COMMANDS_OF_TEXT = frozenset(
    ("\\item", "\\begin", "\\end", "\\par", "\\section", "\\quad", "\\qquad", "\\newline", "\\hline", "\\boxed")
)
_LEADING, _TRAILING = re.compile(r"^(?:[\s,;:*/=>!|^_%)\]}]|\.(?!\d))+"), re.compile(r"[\s,;:*/=<>+|^_([{.-]+$")
_REMARK = re.compile(
    r"(?<=\s)\[\d+\]|[(\[]\s*(?:=|[^\W\d_]{2,})(?<!sqrt)(?<!sin)(?<!cos)(?<!tan)(?<!log)(?<!pi)(?<!ln)(?<!exp)"
)
"""An opening bracket with words in it, or with the way to the number before it."""
_CONTENT = re.compile(r"\d|\\(?!text|quad|[,;: ])[a-zA-Z]+|(?<![a-zA-Z])(?:pi|sqrt|infinity)|=\s*[a-zA-Z]")


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of a sentence, and the place where it stands."""

    start: int
    end: int
    text: str


def expressions(text: str) -> list[Expression]:
    """The expressions of a passage, in order; those with a comma, `and` or `or` alone between them are one.

    What a sentence denies (`it is not 9`), asks for or computes with is not among them.
    """
    return [_signed(text, one) for one in _joined(text) if is_claimed(text, one.start, one.end)]


def last_expression(text: str) -> Expression | None:
    """The last of the expressions of a passage."""
    lines = text.rfind("\n", 0, max(0, len(text) - _FEW)) + 1
    for start in (lines, 0) if lines else (0,):
        end = text[start:]
        found = _joined(end)[-_FEW_EXPRESSIONS:]
        claimed = [one for one in found if is_claimed(end, one.start, one.end)]
        if not claimed and len(found) == 1:
            claimed = [one for one in found if is_claimed(end, one.start, one.end, ordinals=True)]
        if claimed:
            last = _result(end, claimed)
            one = _signed(end, last)
            return Expression(start + one.start, start + one.end, one.text)
    return None


def _result(text: str, claimed: list[Expression]) -> Expression:
    """The last expression, or that in front of it in its sentence: `9*2=18 dollars in 3 days` is 18."""
    last = claimed[-1]
    in_phrase = _PHRASE.search(text[max(0, last.start - 40) : last.start])
    for position in reversed(range(len(claimed) - 1)):
        if _REASON.search(text[claimed[position].end : last.start]):
            return _result(text, claimed[: position + 1])
    for one in reversed(claimed[:-1]):
        between = text[one.end : last.start]
        if "=" in last.text or _NEW_CLAIM.search(between):
            break
        if "=" in one.text or in_phrase:
            return one
    return last


def _joined(text: str) -> list[Expression]:
    found = [expression for run in _runs(text) if (expression := _trimmed(text, *run))]
    joined: list[Expression] = []
    for one in found:
        if joined and _JOINS.fullmatch(text[joined[-1].end : one.start]):
            first = joined.pop()
            joined.append(Expression(first.start, one.end, text[first.start : one.end]))
        else:
            joined.append(one)
    return joined


def _signed(text: str, one: Expression) -> Expression:
    sign = sign_in_words(text, one.start) if one.text[:1].isdigit() else ""
    return Expression(one.start, one.end, sign + one.text)


def _runs(text: str) -> list[tuple[int, int]]:
    """The spans of text between words: numbers, operators, commands, brackets, and letters that stand with them."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    end, depth = 0, 0
    position = 0

    def finish() -> None:
        nonlocal start, depth
        if start is not None and end > start:
            runs.append((start, end))
        start, depth = None, 0

    while position < len(text) and (token := _TOKEN.match(text, position)):
        kind, position = token.lastgroup or "other", token.end()
        kind = "group" if kind == "kind" else kind
        if (
            kind == "group"
            and token["group"].startswith("$")
            and _WORDS_IN_MATHEMATICS.search(token["group"].strip("$"))
        ):
            kind, position = "money", token.start() + 1
        if kind == "group" and _MATRIX.match(token["group"]):
            # With the sign or the factor in front of it.
            start, end = token.start() if start is None else start, token.end()
            continue
        if kind == "group":
            finish()
            runs.append(token.span())
            continue
        if kind == "money" and start is not None and text[start : token.start()].rstrip()[-1:] in tuple("=+-*/"):
            continue
        if kind == "space" and "\n" not in token.group() and start is not None:
            continue
        mathematical = (
            kind in ("number", "function", "operator", "open", "close")
            or (kind == "command" and token.group() not in _COMMANDS_OF_TEXT)
            or (kind == "letter" and _is_variable(text, token))
            or (kind == "comma" and depth > 0)
        )
        if (kind == "close" and depth == 0) or (kind == "open" and _REMARK.match(text, token.start())):
            mathematical = False
        if kind == "number" and start is not None and _is_digit_and_space(text[start : token.start()]):
            finish()  # two numbers side by side
        if not mathematical:
            finish()
            continue
        if start is None:
            start = token.start()
        depth += (kind == "open") - (kind == "close")
        end = token.end()
        if token.group() == "\\text" and (braces := re.compile(r"\s*\{[^{}]*\}").match(text, end)):
            end = position = braces.end()
    finish()
    return runs


def _is_digit_and_space(text: str) -> bool:
    return text[-1:].isspace() and text.rstrip()[-1:].isdigit()


def _is_variable(text: str, token: re.Match[str]) -> bool:
    """Whether a single letter stands with mathematics (`x = 3`, `2x`, `(n)`), rather than in a sentence (`a day`)."""
    before, after = text[: token.start()].rstrip(" "), text[token.end() :].lstrip(" ")
    touches = token.start() > 0 and text[token.start() - 1].isalnum()
    if touches or after[:1] in tuple("=^_<>+*/(") or after.startswith(("\\le", "\\ge", "\\ne", "\\in", "\\cup", "- ")):
        return after[:1] != "(" or touches or text[token.end() : token.end() + 1] == "("
    return before[-1:] in tuple("=+*/^(<>,-") and not re.match(r"\s+[a-z]{2,}", text[token.end() :])


def _trimmed(text: str, start: int, end: int) -> Expression | None:
    """The expression without what belongs to the sentence: signs at its ends, brackets without a partner."""
    piece = text[start:end]
    if text[start] not in "$\\" or not piece.endswith(("$", "\\]", "\\)", "}")):
        leading, trailing = _LEADING.search(piece), _TRAILING.search(piece)
        start += leading.end() if leading else 0
        end -= (
            len(piece) - trailing.start() if trailing and trailing.start() >= (leading.end() if leading else 0) else 0
        )
        start, end = _balanced(text, start, end)
    piece = text[start:end]
    if not _CONTENT.search(piece):
        return None
    return Expression(start, end, piece)


def _balanced(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without an opening bracket that is never closed in it, and all behind one that was never opened."""
    opened = []
    for position in range(start, end):
        if text[position] in "([{":
            opened.append(position)
        elif text[position] in ")]}":
            if not opened:
                return start, position
            opened.pop()
    if opened:
        if opened[0] == start:
            return _balanced(text, start + 1, end) if len(opened) < 5 else (start, start)
        return start, opened[0]
    return start, end
