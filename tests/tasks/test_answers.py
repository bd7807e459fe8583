"""Where a response states its answer: by hand, by construction, and in whatever text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.tasks.answers import after_hashes, last_boxed, last_number

PLAIN = st.text(st.characters(exclude_characters="\\{}"), max_size=30)
BALANCED = st.recursive(PLAIN, lambda inner: st.lists(inner | inner.map("{{{}}}".format), max_size=4).map("".join))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed{never closed", None),
        ("}}}{{{", None),
    ],
)
def test_boxes_by_hand(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@given(before=BALANCED, answer=BALANCED, after=PLAIN)
def test_the_last_box_is_found_whatever_stands_around_it(before: str, answer: str, after: str) -> None:
    assert last_boxed(f"{before}\\boxed{{1}}{before}\\boxed{{{answer}}}{after}") == answer


@given(st.text(st.sampled_from("\\boxed{} a\n"), max_size=60))
def test_any_text_has_a_box_or_none(text: str) -> None:
    found = last_boxed(text)
    assert found is None or f"{{{found}}}" in text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("work\n#### 72", "72"),
        ("#### 1\n#### 2\nmore", "2"),
        ("####\n\n18\nend", "18"),
        ("####", ""),
        ("nothing", None),
    ],
)
def test_hashes_by_hand(text: str, answer: str | None) -> None:
    assert after_hashes(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("from 3 to 18.", "18"),
        ("-1,234.5 it is", "-1,234.5"),
        ("x = 3/4", "3/4"),
        ("costs $18", "$18"),
        ("10-4", "4"),
        ("about 2e-5", "2e-5"),
        ("no number", None),
    ],
)
def test_numbers_by_hand(text: str, number: str | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**9), 10**9), PLAIN.filter(lambda text: not any(c.isdigit() for c in text)))
def test_the_last_number_is_found(value: int, after: str) -> None:
    found = last_number(f"it is {value} {after}")
    assert found is not None
    assert int(found) == value


@pytest.mark.parametrize("hostile", ["\\boxed{", "{", "\\", "1", "1,111", "####", "\\boxed{}", "$-1/", "e1."])
def test_a_megabyte_of_anything_takes_no_time(hostile: str) -> None:
    text = hostile * (10**6 // len(hostile))
    started = time.perf_counter()
    last_boxed(text), after_hashes(text), last_number(text)
    assert time.perf_counter() - started < 5.0
