"""Recorded traces: prompts with the responses that other models wrote, as text, and what each was worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from driftproof.errors import TaskError
from driftproof.tasks.protocol import RecordedGroup, Task
from driftproof.tasks.recorded_rows import read_recorded
from driftproof.tasks.rows import shown
from driftproof.tasks.split import generator


def recorded(path: str | Path, *, heldout_fraction: float = 0.2, seed: int = 0, verifier: str = "math") -> Task:
    """A task whose prompts are those of a file, all answered on record (see `read_recorded`).

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
    return Task(
        name="recorded",
        train=tuple(group.prompt for group in train),
        heldout=tuple(group.prompt for group in heldout),
        verifier=verifier,
        recorded=train,
        recorded_heldout=heldout,
    )


def with_recorded(task: Task, path: str | Path) -> Task:
    """A task, and behind its training prompts those of all the groups of a file.

    Raises:
        TaskError: as `read_recorded`, or a recorded prompt is one that the task holds out.
    """
    first = len(task.train)
    groups = _numbered(read_recorded(path), first)
    heldout = {prompt.text.strip() for prompt in task.heldout}
    found = [group.prompt.text for group in groups if group.prompt.text.strip() in heldout]
    if found:
        raise TaskError(
            f"{path}: {len(found)} of {len(groups)} prompts are held out by task {task.name!r} and must not be trained "
            f"on, like {shown(found[0])}; drop their rows, or hold out other prompts"
        )
    return replace(task, train=(*task.train, *(group.prompt for group in groups)), recorded=groups)


def _numbered(groups: Sequence[RecordedGroup], first: int = 0) -> list[RecordedGroup]:
    return [replace(group, prompt=replace(group.prompt, index=index)) for index, group in enumerate(groups, first)]
