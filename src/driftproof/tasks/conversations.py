"""Prompts of rows, in the forms that people have: texts, chat messages, rows of TRL, verl and OpenAI.

Guarantees: whatever a row holds that a prompt cannot express is an error with file and line, never left out: tools,
images, hidden reasoning, roles out of order. A field that is null is not given.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from driftproof.errors import TaskError
from driftproof.tasks.rows import Row, shown
from driftproof.types import Prompt

VERL_ANSWER = "reward_model.ground_truth"
"""The place of the right answer in verl's rows."""

_REST = ("tool_calls", "function_call", "audio", "reasoning", "reasoning_content", "thinking")
"""Fields that a chat message may have beside its content."""
_CONTEXT = ("tools", "functions", "chat_template_kwargs")
"""Fields of a row that would change the text of its prompt."""
_SYSTEM = ("system", "developer")
_LIKELY_ANSWERS = ("answer", "solution", "ground_truth", "completion", "target", "label", "final_answer", VERL_ANSWER)

Messages = Sequence[tuple[str, str]]
"""Role and content of chat messages."""
Turns = tuple[tuple[str, str], ...]


def _as_it_is(row: Row, answer: str) -> str:
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The places of a prompt in the rows of a task, and what is made of it.

    `Form(prompt=("question",), answer=("answer",)).read(row)` is the prompt of a row.
    """

    prompt: tuple[str, ...]
    """Fields of the prompt, a text or chat messages; the first that a row has is its prompt."""
    answer: tuple[str, ...]
    """Fields of the answer, likewise."""
    system_field: str | None = None
    """Field of a system message."""
    system: str = ""
    """System message of the rows that have none."""
    wrap: Callable[[str], str] = str
    """The text of a prompt, made of what the row has."""
    gold: Callable[[Row, str], str] = _as_it_is
    """The gold answer, made of the text that the row has; raises the row's error where there is none."""
    needs_answer: bool = True
    """Whether a row without an answer is refused."""
    keeps_columns: bool = False
    """Whether prompts keep all other fields of their rows, for reward functions, and answers of any kind, as JSON."""

    def read(self, row: Row) -> Prompt:
        """The prompt of a row, numbered 0; raises the row's error."""
        name = next((name for name in self.prompt if row.given(name)), self.prompt[0])
        value = row.value(name)
        if not isinstance(value, list):
            return self._prompt(row, name, "", (), row.filled(name, value), None)
        messages = read_messages(row, f'"{name}"', value)
        if name == "messages" and messages[-1][0] == "assistant":
            return self.of_messages(row, name, messages[:-1], messages[-1][1])
        return self.of_messages(row, name, messages)

    def of_messages(self, row: Row, name: str, messages: Messages, reply: str | None = None) -> Prompt:
        """The prompt of a row whose messages are known; `reply` is the answer where the row has no other."""
        check_nothing_else(row, "the row", row.fields)
        return replace(self._prompt(row, name, *conversation(row, messages), reply), conversational=True)

    def _prompt(self, row: Row, name: str, system: str, turns: Turns, text: str, reply: str | None) -> Prompt:
        system, text, answer = self._system(row, name, system), self.wrap(text), self._answer(row, reply)
        columns = row.columns(without=("prompt",)) if self.keeps_columns else {}
        try:
            return Prompt(
                index=0, text=text, answer=answer, system=system, turns=turns, columns=columns, source=row.place
            )
        except TaskError as error:
            raise row.error(str(error)) from error

    def _system(self, row: Row, name: str, said: str) -> str:
        """The system message of a row's conversation, of its own field, or of the task."""
        field = row.optional_text(self.system_field) if self.system_field else ""
        if said and field not in ("", said):
            raise row.error(f'there is one system message in "{name}" and another in "{self.system_field}"')
        return said or field or self.system

    def _answer(self, row: Row, reply: str | None) -> str:
        name = next((name for name in self.answer if row.given(name)), None)
        if name is None and reply is not None:
            return self.gold(row, row.filled("messages", reply))
        if name is None and self.needs_answer:
            raise _missing_answer(row, self.answer[0])
        if name is None:
            return ""
        value = row.value(name)
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
            return self.gold(row, row.filled(name, read_reply(row, f'"{name}"', value)))
        if self.keeps_columns and isinstance(value, list | dict | bool):
            return json.dumps(value, default=str)
        answer = row.answer(name)
        return answer if isinstance(value, int | float | Decimal) else self.gold(row, answer)


def _missing_answer(row: Row, field: str) -> TaskError:
    if field in row.fields:
        return row.error(f'the field "{field}" must be a text or a number, not None')
    likely = next((name for name in _LIKELY_ANSWERS if row.given(name)), None)
    hint = f'; to take it from there: task.answer_field = "{likely}"' if likely else ""
    return row.error(f'the field "{field}" is missing (there are: {shown(list(row.fields))}){hint}')


def conversation(row: Row, messages: Messages) -> tuple[str, Turns, str]:
    """System message, or "", turns before the last, and the last message, which is the user's."""
    first = 1 if messages and messages[0][0] in _SYSTEM else 0
    system, rest = messages[0][1] if first else "", list(messages[first:])
    roles = [role for role, _ in rest]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise row.error(
            "a prompt is messages of the user and the assistant in turn, the last of them the user's, after a system "
            f"message or none; this one has the roles {shown([role for role, _ in messages])}"
        )
    for role, content in messages:
        if not content.strip():
            raise row.error(f"the {role} message is empty")
    return system, tuple(rest[:-1]), rest[-1][1]


def read_messages(row: Row, what: str, value: Any) -> list[tuple[str, str]]:
    """Role and content of chat messages, at least one; content in parts is joined where all parts are text."""
    if not isinstance(value, list) or not value:
        raise row.error(f"{what} must be a list with at least one message, not {shown(value)}")
    messages = []
    for position, message in enumerate(value):
        where = f"{what}: message {position}"
        if not isinstance(message, dict):
            raise row.error(f"{where} must be an object, not {shown(message)}")
        check_nothing_else(row, where, message, _REST)
        role = row.check_text(f'{where}: "role"', message.get("role"))
        messages.append((role, _content(row, where, message.get("content"))))
    return messages


def _content(row: Row, where: str, value: Any) -> str:
    if not isinstance(value, list):
        return row.check_text(f'{where}: "content"', value)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise row.error(f'{where}: "content" has a part {shown(kind)}; a prompt or a response is text alone')
        texts.append(row.check_text(f'{where}: "text" of a part', part.get("text")))
    return "".join(texts)


def read_reply(row: Row, what: str, value: Any) -> str:
    """A completion: a text, or one message of the assistant."""
    if not isinstance(value, list):
        return row.check_text(what, value)
    messages = read_messages(row, what, value)
    roles = [role for role, _ in messages]
    if roles != ["assistant"]:
        raise row.error(f"{what} must be one message of the assistant, not messages of the roles {shown(roles)}")
    return messages[0][1]


def check_nothing_else(row: Row, what: str, fields: Mapping[str, Any], names: Sequence[str] = _CONTEXT) -> None:
    """Refuse fields that would change a prompt or a response and cannot be part of one."""
    for name in names:
        if fields.get(name):
            raise row.error(f'{what} has "{name}", which a prompt or a response cannot express')
