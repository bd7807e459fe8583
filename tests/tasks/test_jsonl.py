"""Prompts from JSON lines; what `rows` refuses is tested here for all tasks that read files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from driftproof.errors import TaskError
from driftproof.tasks import gsm8k, jsonl, read_recorded
from tests.tasks.validate import validate

GOOD = '{"prompt": "47+85=", "answer": "132"}'


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def rows(count: int, start: int = 0) -> list[str]:
    return [json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(start, start + count)]


def test_rows_become_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *rows(30), "", "  ", "")
    task = jsonl(path, heldout=10, seed=1)
    assert (len(task.train), len(task.heldout), task.verifier) == (20, 10, "exact")
    assert {prompt.text for prompt in [*task.train, *task.heldout]} == {f"{i}+1=" for i in range(30)}
    assert [prompt.index for prompt in task.train] == list(range(20))
    assert [prompt.index for prompt in task.heldout] == list(range(10))
    assert task == jsonl(str(path), heldout=10, seed=1)
    assert task.heldout != jsonl(path, heldout=10, seed=2).heldout
    validate(task).check()


def test_fields_can_be_named_and_a_system_message_given(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.jsonl",
        '{"q": "größer: 9 oder 10?\u2028", "a": "10", "s": "Antworte kurz."}\r',
        '{"q": "b?", "a": "b", "other": NaN}',
    )
    task = jsonl(path, prompt_field="q", answer_field="a", system_field="s", heldout=0, verifier="math")
    assert {(p.text, p.answer, p.system) for p in task.train} == {
        ("größer: 9 oder 10?\u2028", "10", "Antworte kurz."),
        ("b?", "b", ""),
    }
    assert task.verifier == "math"


def test_another_file_can_be_held_out_in_its_order(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", *rows(3)), write(tmp_path / "test.jsonl", *rows(2, start=50))
    task = jsonl(train, heldout=test)
    assert [prompt.text for prompt in task.train] == ["0+1=", "1+1=", "2+1="]
    assert [(prompt.index, prompt.text) for prompt in task.heldout] == [(0, "50+1="), (1, "51+1=")]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "no JSON: Expecting property name"),
        ("", "the line is empty"),
        ("[1, 2]", "no JSON object: [1, 2]"),
        ("null", "no JSON object: None"),
        ('{"prompt": "47+85="}', "the field \"answer\" is missing (there are: ['prompt'])"),
        ('{"prompt": "47+85=", "answer": true}', 'the field "answer" must be a text or a number, not True'),
        ('{"prompt": "47+85=", "answer": null}', 'the field "answer" must be a text or a number, not None'),
        ('{"prompt": " ", "answer": "132"}', 'the field "prompt" is empty'),
        ('{"prompt": "47+85=", "answer": "132", "system": 1}', 'the field "system" must be a text, not 1'),
        ('{"prompt": "\\ud800", "answer": "132"}', 'the field "prompt" is no valid Unicode'),
        ("[" * 100_000, "no JSON that can be read: maximum recursion depth"),
        ("1" * 10_000, "no JSON that can be read: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named(bad: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, bad, GOOD)
    with pytest.raises(TaskError) as refused:
        jsonl(path, heldout=0)
    assert str(refused.value).startswith(f"{path}:2: {problem}")
    assert str(refused.value).endswith(f"a line is a JSON object like {GOOD}")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  "])
def test_an_empty_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(TaskError, match=re.escape("data.jsonl:1: the file is empty")):
        jsonl(tmp_path / "data.jsonl")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"missing\.jsonl: No such file"):
        jsonl(tmp_path / "missing.jsonl")
    with pytest.raises(TaskError, match="Is a directory"):
        jsonl(tmp_path)


def test_holding_out_everything_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *rows(3))
    with pytest.raises(TaskError, match=r"data\.jsonl: heldout is 3 of 3 prompts; it must be between 0 and 2"):
        jsonl(path, heldout=3)


FIELDS = ["prompt", "question", "problem", "answer", "system", "responses", "text", "correct", "reward"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("#### 7"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)
whole_rows = st.fixed_dictionaries(
    {"prompt": st.text(), "question": st.text(), "problem": st.just("1+1="), "answer": st.just("#### 2") | st.text()},
    optional={
        "system": json_values,
        "responses": st.lists(
            st.fixed_dictionaries({"text": st.text()}, optional={"correct": json_values, "reward": json_values})
            | json_values,
            max_size=3,
        ),
    },
)
lines = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(str.encode),
    st.dictionaries(st.sampled_from(FIELDS), json_values).map(lambda value: json.dumps(value).encode()),
    whole_rows.map(lambda value: json.dumps(value).encode()),
    st.integers(900, 1100).map(lambda depth: b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@pytest.mark.parametrize(
    "read", [lambda path: jsonl(path, heldout=0), lambda path: gsm8k(path, heldout=0), read_recorded]
)
@given(content=st.lists(lines, max_size=4))
@example(content=[b'{"problem": "a", "answer": "b", "responses": [{"text": "", "reward": 1' + b"0" * 400 + b"}]}"])
@settings(max_examples=100, deadline=None)
def test_any_lines_are_read_or_refused_with_file_and_line(
    read: Callable[[Path], Any], content: list[bytes], directory: Path
) -> None:
    path = directory / "data.jsonl"
    path.write_bytes(b"\n".join(content))
    refusal = refused_by(read, path)
    assert refusal is None or re.match(re.escape(str(path)) + r"(:\d+)?: ", refusal)


def refused_by(read: Callable[[Path], Any], path: Path) -> str | None:
    try:
        read(path)
    except TaskError as error:
        return str(error)
    return None
