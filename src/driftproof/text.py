"""Texts of models, servers, templates and files, made fit for terminals and logs.

Guarantees: what comes out has no control characters, so no text can move a cursor, forge a line or reorder letters. All
that people look at goes through here: errors by themselves (`errors.DriftproofError`), events when they are recorded,
lines and tables when they are printed.
"""


def printable(text: str) -> str:
    """`text` with everything that is not printable (control, format, surrogate characters) as an escape like \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`printable`, line by line: only line breaks stay."""
    return "\n".join(map(printable, text.split("\n")))


def shorten(text: str, characters: int) -> str:
    """`text` with its middle left out, so that at most `characters` stay: what matters stands at its ends."""
    if len(text) <= characters:
        return text
    tail = (characters - 1) // 2
    return text[: characters - 1 - tail] + "…" + text[len(text) - tail :]


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
