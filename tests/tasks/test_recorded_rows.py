"""Rows of recorded traces: what each style says, and what no prompt or response can express."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.errors import TaskError
from driftproof.tasks import RecordedGroup, read_recorded
from driftproof.types import Prompt

Rows = list[dict[str, Any]]
GROUPS = [
    RecordedGroup(prompt=Prompt(index=0, text="1+1=", answer="2", system="Add."), texts=("2", "3"), rewards=(1.0, 0.0)),
    RecordedGroup(prompt=Prompt(index=1, text="2+2=", answer="4", system=""), texts=("4",), rewards=(1.0,)),
]


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def user(text: str) -> list[dict[str, Any]]:
    return [message("user", text)]


def assistant(text: str) -> list[dict[str, Any]]:
    return [message("assistant", text)]


ADD = [message("system", "Add."), *user("1+1=")]
STYLES: dict[str, Rows] = {
    "ours": [
        {"problem": "1+1=", "answer": "2", "system": "Add.", "responses": [
            {"text": "2", "correct": True}, {"text": "3", "correct": False}]},
        {"problem": "2+2=", "answer": "4", "system": None, "responses": [{"text": "4", "correct": True}]},
    ],
    "ours, rewards": [
        {"problem": "1+1=", "answer": "2", "system": "Add.", "responses": [
            {"text": "2", "reward": 1.0}, {"text": "3", "reward": 0.0}]},
        {"problem": "2+2=", "answer": "4", "system": None, "responses": [{"text": "4", "reward": 1.0}]},
    ],
    "TRL, one completion": [
        {"prompt": "1+1=", "system": "Add.", "answer": "2", "completion": "2", "reward": 1.0},
        {"prompt": "2+2=", "system": None, "answer": "4", "completion": "4", "reward": 1.0},
        {"prompt": "1+1=", "system": "Add.", "answer": "2", "completion": "3", "reward": 0.0},
    ],
    "TRL, labels and chats": [
        {"prompt": ADD, "answer": "2", "completion": assistant("2"), "label": True},
        {"prompt": user("2+2="), "answer": "4", "completion": assistant("4"), "label": True},
        {"prompt": ADD, "answer": "2", "completion": assistant("3"), "label": False},
    ],
    "TRL, lists": [
        {"prompt": ADD, "answer": "2", "completions": ["2", "3"], "rewards": [1.0, 0.0]},
        {"prompt": user("2+2="), "answer": "4", "completions": ["4"], "rewards": [1.0]},
    ],
    "TRL, lists of chats": [
        {"prompt": ADD, "answer": "2", "completions": [assistant("2"), assistant("3")], "rewards": [1.0, 0.0]},
        {"prompt": user("2+2="), "answer": "4", "completions": [assistant("4")], "rewards": [1.0]},
    ],
    "OpenAI, chats": [
        {"messages": [message("developer", "Add."), *user("1+1="), *assistant("2")], "answer": "2", "correct": True},
        {"messages": [*user("2+2="), *assistant("4")], "answer": "4", "correct": True},
        {"messages": [*ADD, *assistant("3")], "answer": "2", "correct": False},
    ],
    "OpenAI, choices": [
        {"messages": ADD, "answer": "2", "rewards": [1.0, 0.0], "choices": [
            {"index": 0, "finish_reason": "stop", "message": message("assistant", "2", tool_calls=None)},
            {"index": 1, "finish_reason": None, "message": message("assistant", "3", refusal=None)}]},
        {"messages": user("2+2="), "answer": "4", "rewards": [1.0], "choices": [{"message": assistant("4")[0]}]},
    ],
    "OpenAI, choices that know their rewards": [
        {"prompt": ADD, "answer": "2", "choices": [{"text": "2", "reward": 1.0}, {"text": "3", "reward": 0.0}]},
        {"prompt": user("2+2="), "answer": "4", "choices": [{"text": "4", "reward": 1.0}]},
    ],
    "OpenAI, one choice a row": [
        {"prompt": "1+1=", "system": "Add.", "answer": "2", "reward": 1.0, "choices": [{"text": "2"}]},
        {"prompt": "2+2=", "system": None, "answer": "4", "reward": 1.0, "choices": [{"text": "4"}]},
        {"prompt": "1+1=", "system": "Add.", "answer": "2", "reward": 0.0, "choices": [{"text": "3"}]},
    ],
}  # fmt: skip


def write(path: Path, rows: Rows) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def tabulate(path: Path, rows: Rows) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("save", "name"), [(write, "data.jsonl"), (tabulate, "data.parquet")])
def test_the_same_groups_in_every_style(style: str, save: Any, name: str, tmp_path: Path) -> None:
    assert read_recorded(save(tmp_path / name, STYLES[style])) == GROUPS


def test_rows_of_ours_are_groups_even_of_one_prompt(tmp_path: Path) -> None:
    again = STYLES["ours"][:1] * 3
    assert [group.texts for group in read_recorded(write(tmp_path / "data.jsonl", again))] == [("2", "3")] * 3


def test_other_rows_of_one_prompt_are_one_group(tmp_path: Path) -> None:
    (group,) = read_recorded(write(tmp_path / "data.jsonl", STYLES["TRL, lists"][:1] * 3))
    assert group.texts == ("2", "3") * 3
    # Equal texts after different system messages are different prompts.
    rows = [{"prompt": [message("system", s), *user("1+1=")], "completion": "2", "reward": 1} for s in "aba"]
    groups = read_recorded(write(tmp_path / "data.jsonl", rows))
    assert [(group.prompt.index, group.prompt.system, len(group.texts)) for group in groups] == [
        (0, "a", 2), (1, "b", 1),
    ]  # fmt: skip


def test_a_response_that_the_token_limit_ended_is_unfinished(tmp_path: Path) -> None:
    choices = [{"text": "1", "finish_reason": "length"}, {"text": "2", "finish_reason": "stop"}]
    rows = [{"prompt": "1+1=", "choices": choices, "rewards": [0, 1]}] * 2
    (group,) = read_recorded(write(tmp_path / "data.jsonl", rows))
    assert group.unfinished == {0, 2}


def test_a_table_whose_columns_are_partly_null(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=", "completion": "2", "label": None, "reward": 0.5, "tools": None},
        {"prompt": "1+1=", "completion": "3", "label": False, "reward": None, "tools": None},
    ]
    (group,) = read_recorded(tabulate(tmp_path / "data.parquet", rows))
    assert group.rewards == (0.5, 0.0)


TRL: dict[str, Any] = {"prompt": "1+1=", "completion": "2", "reward": 1.0}
LISTS: dict[str, Any] = {"prompt": "1+1=", "completions": ["2", "3"], "rewards": [1.0, 0.0]}
CHAT: dict[str, Any] = {"messages": [*user("1+1="), *assistant("2")], "reward": 1.0}
CHOICES: dict[str, Any] = {"messages": user("1+1="), "choices": [{"text": "2"}, {"text": "3"}], "rewards": [1, 0]}
TWO = [{"text": "2"}, {"text": "3"}]
ROLES = (
    "a prompt is messages of the user and the assistant in turn, the last of them the user's, after a system message "
    "or none; this one has the roles "
)


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        (TRL, {"prompt": "1+1="}, "the row has no responses: none of the fields responses (driftproof's style), compl"),
        (TRL, CHAT, "the row is OpenAI-style, but the file's first one is TRL-style"),
        (CHAT, LISTS, "the row is TRL-style, but the file's first one is OpenAI-style"),
        (TRL, STYLES["ours"][0], "the row is driftproof's style, but the file's first one is TRL-style"),
        (TRL, {"completion": "2", "reward": 1.0}, 'the field "prompt" is missing'),
        (TRL, TRL | {"prompt": " "}, 'the field "prompt" is empty'),
        (TRL, TRL | {"prompt": 3}, 'the field "prompt" must be a text, not 3'),
        (TRL, TRL | {"prompt": []}, '"prompt" must be a list with at least one message, not []'),
        (TRL, TRL | {"prompt": ["1+1="]}, "\"prompt\": message 0 must be an object, not '1+1='"),
        (TRL, TRL | {"prompt": [{"content": "1+1="}]}, '"prompt": message 0: "role" must be a text, not None'),
        (TRL, TRL | {"prompt": user("")}, "the user message is empty"),
        (TRL, TRL | {"prompt": [message("system", ""), *user("1+1=")]}, "the system message is empty"),
        (TRL, TRL | {"prompt": [*user("a"), *assistant("b")]}, ROLES + "['user', 'assistant']"),
        (TRL, TRL | {"prompt": [*assistant("b"), *user("a")]}, ROLES + "['assistant', 'user']"),
        (TRL, TRL | {"prompt": [*user("a"), *user("b")]}, ROLES + "['user', 'user']"),
        (TRL, TRL | {"prompt": [*user("a"), message("system", "b")]}, ROLES + "['user', 'system']"),
        (TRL, TRL | {"prompt": [message("tool", "b")]}, ROLES + "['tool']"),
        (
            TRL,
            TRL | {"prompt": [message("user", [{"type": "image", "url": "x.png"}])]},
            '"prompt": message 0: "content" has a part \'image\'; a prompt or a response is text alone',
        ),
        (TRL, TRL | {"tools": [{"name": "add"}]}, 'the row has "tools", which a prompt or a response cannot express'),
        (TRL, TRL | {"answer": True}, 'the field "answer" must be a text or a number, not True'),
        (TRL, TRL | {"answer": "2"}, "the answer is '2', in an earlier row of the prompt ''"),
        (TRL, TRL | {"completions": ["2"]}, 'the row needs either "completion" or "completions", and has completion a'),
        (
            TRL,
            {"prompt": "1+1=", "completion": "2"},
            'the row needs either "reward" or "rewards" or "label", and has n',
        ),
        (TRL, TRL | {"label": True}, 'the row needs either "reward" or "rewards" or "label", and has reward and label'),
        (TRL, TRL | {"reward": None, "label": 1}, '"label" of response 0 must be true or false, not 1'),
        (TRL, TRL | {"reward": True}, '"reward" of response 0 must be a finite number, not True'),
        (TRL, TRL | {"reward": float("nan")}, '"reward" of response 0 must be a finite number, not nan'),
        (TRL, TRL | {"completion": 2}, "completion 0 must be a text, not 2"),
        (TRL, TRL | {"completion": "\ud800"}, "completion 0 is no valid Unicode"),
        (TRL, TRL | {"completion": []}, "completion 0 must be a list with at least one message, not []"),
        (
            TRL,
            TRL | {"completion": user("2")},
            "completion 0 must be one message of the assistant, not messages of the",
        ),
        (TRL, TRL | {"completion": assistant("a") * 2}, "completion 0 must be one message of the assistant, not mess"),
        (
            TRL,
            TRL | {"completion": [message("assistant", "2", reasoning_content="one and one")]},
            'completion 0: message 0 has "reasoning_content", which a prompt or a response cannot express',
        ),
        (
            LISTS,
            LISTS | {"completions": []},
            'the field "completions" must be a list with at least one completion, not',
        ),
        (LISTS, LISTS | {"rewards": [1.0]}, 'the field "rewards" must be a list of 2, as many as there are completion'),
        (LISTS, LISTS | {"rewards": 1.0}, 'the field "rewards" must be a list of 2, as many as there are completions,'),
        (LISTS, LISTS | {"rewards": [1.0, "0"]}, "\"rewards\" of response 1 must be a finite number, not '0'"),
        (CHAT, {"messages": CHAT["messages"]}, 'the row needs either "reward" or "correct", and has neither'),
        (CHAT, CHAT | {"correct": True}, 'the row needs either "reward" or "correct", and has reward and correct'),
        (CHAT, CHAT | {"reward": None, "correct": "yes"}, "the row: \"correct\" must be true or false, not 'yes'"),
        (CHAT, CHAT | {"messages": user("1+1=")}, "the last message must be the assistant's, which is the response, n"),
        (CHAT, CHAT | {"messages": assistant("2")}, ROLES + "[]"),
        (
            CHAT,
            CHAT | {"messages": [*user("1+1="), message("assistant", None, tool_calls=[{"id": "1"}])]},
            '"messages": message 1 has "tool_calls", which a prompt or a response cannot express',
        ),
        (CHOICES, CHOICES | {"prompt": "1+1="}, 'the row needs either "messages" or "prompt", and has messages and pr'),
        (CHOICES, CHOICES | {"messages": [*user("1+1="), *assistant("2")]}, ROLES + "['user', 'assistant']"),
        (CHOICES, CHOICES | {"choices": []}, 'the field "choices" must be a list with at least one choice, not []'),
        (CHOICES, CHOICES | {"choices": ["2", "3"]}, "choice 0 must be an object, not '2'"),
        (CHOICES, CHOICES | {"choices": [{"text": "2"}, {}]}, 'choice 1 needs either "message" or "text", and has nei'),
        (
            CHOICES,
            CHOICES | {"choices": [{"text": "2"}, {"message": "3"}]},
            "choice 1: message 0 must be an object, no",
        ),
        (CHOICES, CHOICES | {"choices": [{"text": 2}]}, 'choice 0: "text" must be a text, not 2'),
        (
            CHOICES,
            CHOICES | {"choices": [{"text": "2", "finish_reason": "content_filter"}]},
            "choice 0: \"finish_reason\" must be 'stop' or 'length', not 'content_filter'",
        ),
        (
            CHOICES,
            CHOICES | {"choices": [{"text": "", "finish_reason": "length"}]},
            "choice 0 is empty, though its length is said to have ended it",
        ),
        (
            CHOICES,
            CHOICES | {"rewards": [1]},
            'the field "rewards" must be a list of 2, as many as there are choices, ',
        ),
        (CHOICES, CHOICES | {"rewards": None}, 'choice 0 needs either "reward" or "correct", and has neither'),
        (
            CHOICES,
            {"prompt": "1+1=", "reward": 1, "choices": TWO},
            'choice 0 needs either "reward" or "correct", and h',
        ),
        (
            CHOICES,
            {"prompt": "1+1=", "choices": TWO[:1]},
            'the row needs either "reward" or "correct", and has neither',
        ),
        (
            CHOICES,
            CHOICES | {"choices": [{"text": "2"}, {"text": "3", "reward": 1}]},
            'the row has "rewards", and so has choice 1; give it once',
        ),
    ],
)
def test_a_bad_row_is_named(good: dict[str, Any], bad: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [good, bad])
    with pytest.raises(TaskError) as refused:
        read_recorded(path)
    assert str(refused.value).startswith(f"{path}:2: {problem}")
    assert "; a line is a JSON object like {" in str(refused.value)


FIELDS = sorted({field for rows in STYLES.values() for row in rows for field in row} | {"tools", "label", "reward"})
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*FIELDS, "role", "content", "text", "message", "tool_calls"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value one can change something."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def nearly_good(draw: st.DrawFn) -> list[Any]:
    """Rows of one style, some with one place changed."""
    rows: list[Any] = list(draw(st.sampled_from(list(STYLES.values()))))
    for position in draw(st.sets(st.integers(0, len(rows) - 1))):
        rows[position] = changed(rows[position], draw(st.sampled_from(places(rows[position]))), draw(values))
    return rows


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def read_or_refused(path: Path) -> list[RecordedGroup] | str:
    try:
        return read_recorded(path)
    except TaskError as error:
        return str(error)


@given(rows=nearly_good() | st.lists(values | st.dictionaries(st.sampled_from(FIELDS), values), max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_rows_are_read_or_refused_with_file_and_line(rows: Rows, directory: Path) -> None:
    path = write(directory / "data.jsonl", rows)
    groups = read_or_refused(path)
    if isinstance(groups, str):
        assert re.match(re.escape(str(path)) + r"(:\d+)?: ", groups)
        return
    assert [group.prompt.index for group in groups] == list(range(len(groups)))
    assert all(len(group.texts) == len(group.rewards) > 0 for group in groups)
    assert all(group.unfinished <= set(range(len(group.texts))) for group in groups)
