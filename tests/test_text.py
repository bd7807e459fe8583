"""Texts made fit for terminals."""

from hypothesis import given
from hypothesis import strategies as st

from driftproof.errors import EngineError
from driftproof.text import duration, printable, printable_lines, shorten


def test_control_and_format_characters_become_escapes() -> None:
    assert printable("a\n\x1b[31m\u202e\ud800é") == r"a\n\x1b[31m\u202e\ud800é"


@given(st.text())
def test_everything_becomes_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


@given(st.text())
def test_only_line_breaks_stay_in_lines(text: str) -> None:
    assert printable_lines(text).replace("\n", "").isprintable()
    assert str(EngineError(text)) == printable_lines(text)


@given(st.text(), st.integers(min_value=3, max_value=40))
def test_shortened_text_keeps_both_ends(text: str, characters: int) -> None:
    short = shorten(text, characters)
    assert len(short) == min(len(text), characters)
    head, _, tail = short.partition("…") if len(text) > characters else (text, "", "")
    assert text.startswith(head)
    assert text.endswith(tail)


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 123, 3723)] == ["0:00", "1:00", "2:03", "1:02:03"]
