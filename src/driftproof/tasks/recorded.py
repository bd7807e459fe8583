"""Recorded traces: prompts with the responses that other models wrote, as text, and what each was worth.

Guarantees: a file has one style, driftproof's, TRL's or OpenAI's, that of its first row; whatever a row holds that a
prompt or a response cannot express is an error with file and line, never left out: tools, images, hidden reasoning. A
field that is null is not given; a reward that is null is none, and its response is trained on without effect.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from driftproof.errors import TaskError
from driftproof.tasks.conversations import VERL_ANSWER, Form, check_nothing_else, read_messages, read_reply
from driftproof.tasks.protocol import RecordedGroup, Task, generator, identity, own_rewards
from driftproof.tasks.rows import Row, shown
from driftproof.tasks.sources import read_rows
from driftproof.types import Prompt


@dataclass(frozen=True, slots=True)
class _Response:
    text: str
    reward: float
    unfinished: bool = False
    """Whether a token limit ended it."""


@dataclass(frozen=True, slots=True)
class _Style:
    name: str
    fields: tuple[str, ...]
    """A row that has one of them is of this style."""
    example: str
    read: Callable[[Row], tuple[Prompt, list[_Response]]]


_MARKS = ("correct", "label")
"""Fields of rewards that are true or false; all others are numbers."""
_FORM = Form(
    prompt=("prompt",), answer=("answer", "ground_truth", VERL_ANSWER), system_field="system", needs_answer=False
)
_OURS = Form(prompt=("problem",), answer=("answer",), system_field="system")


def recorded(
    path: str | Path, *, heldout_fraction: float = 0.2, seed: int = 0, verifier: str | tuple[str, ...] = "math"
) -> Task:
    """A task whose prompts are those of a file, all answered on record (see `read_recorded`).

    `heldout_fraction` of the groups is held out, drawn by `seed`, with the same share of mixed groups as in the file.
    The verifier scores fresh responses; the recorded ones keep their rewards.
    """
    groups = read_recorded(path, keeps_columns=own_rewards(verifier))
    count = math.ceil(heldout_fraction * len(groups)) if 0 <= heldout_fraction < 1 else -1
    if not 0 <= count < len(groups):
        raise TaskError(
            f"{path}: heldout_fraction is {heldout_fraction} of {len(groups)} groups; "
            "it must be at least 0 and leave at least one group to train on"
        )
    groups = [groups[i] for i in generator(seed).permutation(len(groups))]
    # Every (n / count)-th of the shuffled groups, the mixed ones first: each kind has its share.
    by_kind = sorted(range(len(groups)), key=lambda i: not groups[i].mixed)
    held_out = {by_kind[(2 * k + 1) * len(groups) // (2 * count)] for k in range(count)}
    train = _numbered([group for i, group in enumerate(groups) if i not in held_out])
    heldout = _numbered([group for i, group in enumerate(groups) if i in held_out])
    return Task(
        name="recorded",
        train=tuple(group.prompt for group in train),
        heldout=tuple(group.prompt for group in heldout),
        verifier=verifier,
        recorded=train,
        recorded_heldout=heldout,
    )


def with_recorded(task: Task, path: str | Path) -> Task:
    """A task, and behind its training prompts those of a file's groups; TaskError where the task holds one out."""
    first = len(task.train)
    groups = _numbered(read_recorded(path), first)
    heldout = set(map(identity, task.heldout))
    # A trace may hold the bare question, or what the task's template made of it.
    found = [
        group.prompt.text
        for group in groups
        for text in {group.prompt.text, task.wrap(group.prompt.text)}
        if identity(replace(group.prompt, text=text)) in heldout
    ]
    if found:
        raise TaskError(
            f"{path}: {len(found)} of {len(groups)} prompts are held out by task {task.name!r} and must not be trained "
            f"on, like {shown(found[0])}; drop their rows, or hold out other prompts"
        )
    return replace(task, train=(*task.train, *(group.prompt for group in groups)), recorded=groups)


def _numbered(groups: Sequence[RecordedGroup], first: int = 0) -> list[RecordedGroup]:
    return [replace(group, prompt=replace(group.prompt, index=index)) for index, group in enumerate(groups, first)]


def read_recorded(path: str | Path, *, keeps_columns: bool = False) -> list[RecordedGroup]:
    """All groups of a file, their prompts numbered from 0 in the order in which they first appear.

    A row of ours is a group; rows of the other styles with equal prompts are one group together. Fields that are not of
    the style are ignored, or kept as the prompt's columns; TaskError for a row of another style than the first one's,
    one prompt with two answers, or a file without any reward.
    """
    style: _Style | None = None
    groups: dict[object, tuple[Prompt, list[_Response]]] = {}
    for position, row in enumerate(read_rows(path, STYLES[0].example)):
        found = _style(row)
        style = style or found
        row = replace(row, example=style.example)
        if found is not style:
            raise row.error(f"the row is {found.name}, but the file's first one is {style.name}")
        prompt, responses = style.read(row)
        if keeps_columns:
            prompt = replace(prompt, columns=row.columns(without=("prompt", "messages", "problem")))
        group = position if style is STYLES[0] else (prompt.system, prompt.turns, prompt.text)
        first, gathered = groups.setdefault(group, (prompt, []))
        if first.answer != prompt.answer:
            earlier = f"in an earlier row of the prompt {shown(first.answer)}"
            raise row.error(f"the answer is {shown(prompt.answer)}, {earlier}")
        gathered += responses
    if all(math.isnan(response.reward) for _, responses in groups.values() for response in responses):
        raise TaskError(f"{path}: no response has a reward; a line is a JSON object like {STYLES[0].example}")
    return [_recorded_group(index, *group) for index, group in enumerate(groups.values())]


def _recorded_group(index: int, prompt: Prompt, responses: Sequence[_Response]) -> RecordedGroup:
    return RecordedGroup(
        prompt=replace(prompt, index=index),
        texts=tuple(response.text for response in responses),
        rewards=tuple(response.reward for response in responses),
        unfinished=frozenset(i for i, response in enumerate(responses) if response.unfinished),
    )


def _style(row: Row) -> _Style:
    if found := [style for style in STYLES if _given(row.fields, style.fields)]:
        return found[0]
    known = ", ".join(f"{' or '.join(style.fields)} ({style.name})" for style in STYLES)
    raise row.error(f"the row has no responses: none of the fields {known}; there are: {shown(list(row.fields))}")


def _read_ours(row: Row) -> tuple[Prompt, list[_Response]]:
    prompt, responses = _OURS.read(row), []
    for position, response in enumerate(_listed(row, "responses", "response")):
        what = f"response {position}"
        if not isinstance(response, dict):
            raise row.error(f"{what} must be an object, not {shown(response)}")
        text = row.check_text(f'{what}: "text"', response.get("text"))
        responses.append(_Response(text, _reward_of(row, what, response, ("correct", "reward"))))
    return prompt, responses


def _read_trl(row: Row) -> tuple[Prompt, list[_Response]]:
    check_nothing_else(row, "the row", row.fields)
    field = _only(row, "the row", row.fields, ("completion", "completions"))
    name = _reward_name(row, "the row", row.fields, ("reward", "rewards", "label"))
    completions, rewards = [row.fields[field]], [row.fields[name]]
    if field == "completions":
        completions = _listed(row, field, "completion")
        rewards = _listed(row, name, field, len(completions))
    texts = [read_reply(row, f"completion {i}", completion) for i, completion in enumerate(completions)]
    return _FORM.read(row), list(map(_Response, texts, _rewards(row, name, rewards)))


def _read_openai(row: Row) -> tuple[Prompt, list[_Response]]:
    check_nothing_else(row, "the row", row.fields)
    if not _given(row.fields, ("choices",)):
        *asked, (role, text) = read_messages(row, '"messages"', row.value("messages"))
        reward = _reward_of(row, "the row", row.fields, ("reward", "correct"))
        if role != "assistant":
            said = f"which is the response, not of role {shown(role)}"
            raise row.error(f"the last message must be the assistant's, {said}")
        return _FORM.of_messages(row, "messages", asked), [_Response(text, reward)]
    field = _only(row, "the row", row.fields, ("messages", "prompt"))
    if field == "messages":
        prompt = _FORM.of_messages(row, field, read_messages(row, '"messages"', row.value(field)))
    else:
        prompt = _FORM.read(row)
    choices = _listed(row, "choices", "choice")
    texts = [_choice(row, f"choice {i}", choice) for i, choice in enumerate(choices)]
    rewards = _choice_rewards(row, choices)
    return prompt, [_Response(text, reward, cut) for (text, cut), reward in zip(texts, rewards, strict=True)]


STYLES = (
    _Style(
        "driftproof's style",
        ("responses",),
        '{"problem": "47+85=", "answer": "132", "responses": [{"text": "132", "correct": true}]}',
        _read_ours,
    ),
    _Style(
        "TRL-style",
        ("completion", "completions"),
        '{"prompt": "47+85=", "completions": ["132", "122"], "rewards": [1.0, 0.0]}',
        _read_trl,
    ),
    _Style(
        "OpenAI-style",
        ("choices", "messages"),
        '{"messages": [{"role": "user", "content": "47+85="}], '
        '"choices": [{"message": {"role": "assistant", "content": "132"}}], "rewards": [1.0]}',
        _read_openai,
    ),
)
"""The styles, the first of which is meant where a row has the fields of several."""


def _choice(row: Row, what: str, choice: Any) -> tuple[str, bool]:
    """Text of a choice, and whether it is unfinished."""
    if not isinstance(choice, dict):
        raise row.error(f"{what} must be an object, not {shown(choice)}")
    if _only(row, what, choice, ("message", "text")) == "text":
        text = row.check_text(f'{what}: "text"', choice["text"])
    else:
        text = read_reply(row, what, [choice["message"]])
    finish = choice.get("finish_reason")
    if finish not in (None, "stop", "length"):
        raise row.error(f"{what}: \"finish_reason\" must be 'stop' or 'length', not {shown(finish)}")
    if finish == "length" and not text:
        raise row.error(f"{what} is empty, though its length is said to have ended it")
    return text, finish == "length"


def _choice_rewards(row: Row, choices: Sequence[dict[str, Any]]) -> list[float]:
    """The reward of each choice: from a list in the row, from itself, or, for the only one, from the row."""
    names = ("reward", "correct")
    by_row = _given(row.fields, ("rewards", *names))
    by_choice = [i for i, choice in enumerate(choices) if _given(choice, names)]
    if by_row and by_choice:
        raise row.error(f"the row has {_quoted(by_row, 'and')}, and so has choice {by_choice[0]}; give it once")
    if _given(row.fields, ("rewards",)):
        return _rewards(row, "rewards", _listed(row, "rewards", "choices", len(choices)))
    if len(choices) == 1 and not by_choice:
        return [_reward_of(row, "the row", row.fields, names)]
    return [_reward_of(row, f"choice {i}", choice, names) for i, choice in enumerate(choices)]


def _listed(row: Row, field: str, of: str, count: int | None = None) -> list[Any]:
    """The list in a field, with as many values as there are of something else, or at least one."""
    value = row.value(field)
    if not isinstance(value, list) or not value or count not in (None, len(value)):
        wanted = f"of {count}, as many as there are {of}" if count else f"with at least one {of}"
        raise row.error(f'the field "{field}" must be a list {wanted}, not {shown(value)}')
    return value


def _reward_of(row: Row, what: str, fields: Mapping[str, Any], names: Sequence[str]) -> float:
    name = _reward_name(row, what, fields, names)
    return _number(row, f'{what}: "{name}"', name, fields[name])


def _reward_name(row: Row, what: str, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of these fields that is given; the one that is there where all are null, for a response without a
    reward."""
    there = [name for name in names if name in fields]
    return there[0] if len(there) == 1 and there[0] != "rewards" else _only(row, what, fields, names)


def _rewards(row: Row, field: str, values: Sequence[Any]) -> list[float]:
    return [_number(row, f'"{field}" of response {i}', field, value) for i, value in enumerate(values)]


def _number(row: Row, what: str, field: str, value: Any) -> float:
    if value is None:
        return math.nan
    if field in _MARKS:
        if not isinstance(value, bool):
            raise row.error(f"{what} must be true or false, not {shown(value)}")
        return float(value)
    # Python's JSON reads NaN and Infinity, and integers too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
        raise row.error(f"{what} must be a finite number, not {shown(value)}")
    return float(value)


def _only(row: Row, what: str, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of these fields that is given."""
    given = _given(fields, names)
    if len(given) != 1:
        raise row.error(f"{what} needs either {_quoted(names, 'or')}, and has {' and '.join(given) or 'neither'}")
    return given[0]


def _given(fields: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if fields.get(name) is not None]


def _quoted(names: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(f'"{name}"' for name in names)
