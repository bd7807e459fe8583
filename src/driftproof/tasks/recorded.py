"""Groups that other models wrote: prompts with their responses as text and what each was worth, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from driftproof.tasks.protocol import Task, TaskError
from driftproof.tasks.rows import Row, read_rows, shown
from driftproof.tasks.split import generator
from driftproof.types import Prompt

_EXAMPLE = '{"problem": "47+85=", "answer": "132", "responses": [{"text": "132", "correct": true}]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """One prompt with the responses that were recorded for it."""

    prompt: Prompt
    texts: tuple[str, ...]
    """[G], G >= 1."""
    rewards: tuple[float, ...]
    """[G], finite; 1.0 and 0.0 for responses marked correct or not."""

    @property
    def mixed(self) -> bool:
        """Whether some responses are worth more than others."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTask(Task):
    """A task whose prompts have been answered already: `train_groups[i].prompt == train[i]`, the same held out."""

    train_groups: Sequence[RecordedGroup]
    heldout_groups: Sequence[RecordedGroup]


def recorded(path: str | Path, *, heldout_fraction: float = 0.2, seed: int = 0, verifier: str = "math") -> RecordedTask:
    """A task from rows like `{"problem": ..., "answer": ..., "responses": [{"text": ..., "correct": true}, ...]}`.

    `heldout_fraction` of the groups is held out, drawn by `seed`, with the same share of mixed groups as in the file.
    The verifier scores fresh responses; the recorded ones keep their rewards.

    Raises:
        TaskError: a file that cannot be read, a bad row, a fraction outside [0, 1), or nothing left to train on.
    """
    groups = read_recorded(path)
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
    return RecordedTask(
        name="recorded",
        train=tuple(group.prompt for group in train),
        heldout=tuple(group.prompt for group in heldout),
        verifier=verifier,
        train_groups=train,
        heldout_groups=heldout,
    )


def read_recorded(path: str | Path) -> list[RecordedGroup]:
    """All groups of a file, in its order, their prompts numbered from 0.

    A response has a text and either "correct", true or false, or "reward", a finite number; other fields are ignored.

    Raises:
        TaskError: a file that cannot be read or a bad row.
    """
    return _numbered([_group(row) for row in read_rows(path, _EXAMPLE)])


def _numbered(groups: Sequence[RecordedGroup]) -> list[RecordedGroup]:
    return [replace(group, prompt=replace(group.prompt, index=index)) for index, group in enumerate(groups)]


def _group(row: Row) -> RecordedGroup:
    prompt = Prompt(index=0, text=row.text("problem"), answer=row.text("answer"), system=row.optional_text("system"))
    responses = row.value("responses")
    if not isinstance(responses, list) or not responses:
        raise row.error(f'the field "responses" must be a list with at least one response, not {shown(responses)}')
    texts, rewards = zip(*(_response(row, i, response) for i, response in enumerate(responses)), strict=True)
    return RecordedGroup(prompt=prompt, texts=texts, rewards=rewards)


def _response(row: Row, position: int, response: Any) -> tuple[str, float]:
    what = f"response {position}"
    if not isinstance(response, dict):
        raise row.error(f"{what} must be an object, not {shown(response)}")
    text = row.check_text(f'{what}: "text"', response.get("text"))
    given = [name for name in ("correct", "reward") if name in response]
    if len(given) != 1:
        raise row.error(f'{what} needs either "correct" or "reward", and has {" and ".join(given) or "neither"}')
    value = response[given[0]]
    if given == ["correct"]:
        if not isinstance(value, bool):
            raise row.error(f'{what}: "correct" must be true or false, not {shown(value)}')
        return text, float(value)
    # Python's JSON reads NaN and Infinity, and integers too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
        raise row.error(f'{what}: "reward" must be a finite number, not {shown(value)}')
    return text, float(value)
