r"""The parts that an answer falls into: at commas, semicolons, `and`, `or`, unions and lines, outside all brackets."""

import re

ENVIRONMENT = re.compile(
    r"\s*\\begin\s*\{(align|aligned|alignat|gather|gathered|equation|split|eqnarray|multline|cases|displaymath|math)\*?\}"
)
_END = re.compile(r"\\end\s*\{[a-z]+\*?\}")
_WORD = re.compile(
    r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|\\q?quad(?![a-zA-Z]))\s*"
)
_TOKEN = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[{}]|\\langle|\\rangle|\\[a-zA-Z]+|\\\\|.", re.DOTALL)


def split(text: str, *separators: str) -> list[str]:
    """The parts of a text between separators (single characters or commands) outside all brackets, none empty."""
    return [part for part in _all_parts(text, separators) if part]


def sides_of(text: str) -> list[str]:
    """The sides of an equation; those of a sum's bounds are none."""
    return _all_parts(text, ("=",))


def _all_parts(text: str, separators: tuple[str, ...]) -> list[str]:
    parts, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in ("(", "[", "{", "\\{", "\\langle") or word.startswith("\\begin"):
            depth += 1
        elif word in (")", "]", "}", "\\}", "\\rangle") or word.startswith("\\end"):
            depth = max(0, depth - 1)
        elif depth == 0 and word in separators:
            parts.append(text[start : token.start()])
            start = token.end()
    return [part.strip() for part in [*parts, text[start:]]]


def split_words(text: str) -> list[str]:
    """The members of a list: between commas, semicolons, `and` and `or`."""
    parts = []
    for part in split(text, ",", ";", "\\quad", "\\qquad"):
        last = 0
        for word in _WORD.finditer(part):
            if _is_outside(part, word.start()):
                parts.append(part[last : word.start()])
                last = word.end()
        parts.append(part[last:])
    return [part.strip() for part in parts if part.strip()]


def _is_outside(text: str, position: int) -> bool:
    before = text[:position]
    return all(
        before.count(opening) == before.count(closer) for opening, closer in (("{", "}"), ("(", ")"), ("[", "]"))
    )


def rows(text: str) -> list[str]:
    r"""The lines of a block (`align`, `cases`) that are its answer: the last, or all if each gives a name a value."""
    inside = _END.sub("", ENVIRONMENT.sub("", text))
    lines = [line.replace("&", " ").strip() for line in re.split(r"\\\\(?:\[[^\]]*\])?", inside)]
    lines = [line for line in lines if line.strip(" .,{}")]
    names = [name[1] if (name := re.match(r"\s*([a-zA-Z](?:_\{?\w+\}?)?)\s*=", line)) else "" for line in lines]
    return lines if all(names) and len(set(names)) == len(names) else lines[-1:]
