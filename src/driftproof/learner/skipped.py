"""The groups of updates that were not made, because their loss or gradient was not finite, kept to be looked at.

Guarantees: a file is whole or it is not there; the newest `KEPT` are kept; every line is strict JSON.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from driftproof.run import step_directory, written_whole
from driftproof.types import Batch, Group

KEPT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """An update that was not made."""

    loss: float
    grad_norm: float
    """Before clipping."""
    offending: dict[int, tuple[int, ...]]
    """Groups at fault by their position in the step's batch, with their responses that are not finite. Where no one
    response is to blame: all groups of the update, each with ()."""

    @classmethod
    def of(
        cls, groups: Sequence[Group], not_finite_R: Sequence[bool], *, first: int, loss: float, grad_norm: float
    ) -> Self:
        """From the groups of an update, the first of which is the `first` of its step, and its bad responses."""
        flags = np.split(np.array(not_finite_R), np.cumsum([group.size for group in groups])[:-1])
        bad = {first + n: tuple(np.flatnonzero(of_group).tolist()) for n, of_group in enumerate(flags)}
        offending = {position: responses for position, responses in bad.items() if responses} or bad
        return cls(loss=loss, grad_norm=grad_norm, offending=offending)


def save_skipped(directory: Path, batch: Batch, skipped: Sequence[Skipped]) -> Path:
    """Write the offending groups of a step to `directory/step-00000042.jsonl`, one a line."""
    directory.mkdir(exist_ok=True)
    path = step_directory(directory, batch.step).with_suffix(".jsonl")
    with written_whole(path) as partial, partial.open("w") as file:
        for update in skipped:
            for position in update.offending:
                file.write(json.dumps(_line(batch, position, update), allow_nan=False) + "\n")
    for old in sorted(directory.glob("step-*.jsonl"))[:-KEPT]:
        old.unlink()
    return path


def _line(batch: Batch, position: int, update: Skipped) -> dict[str, Any]:
    group = batch.groups[position]
    logprobs = group.behavior_logprobs
    ends = np.cumsum(group.trained_lengths)[:-1]
    return {
        "step": batch.step,
        "loss": _number(update.loss),
        "grad_norm": _number(update.grad_norm),
        "prompt_index": group.prompt_index,
        "age": batch.ages[position],
        "not_finite": list(update.offending[position]),
        "rewards": [None if math.isnan(reward) else reward for reward in group.rewards.tolist()],
        "response_lengths": group.response_lengths.tolist(),
        "finish_reasons": list(group.finish_reasons),
        "problems": list(group.problems),
        "prompt_tokens": group.prompt_tokens.tolist(),
        "response_tokens": [tokens.tolist() for tokens in group.split()],
        "trained": None if group.trained is None else [mask.tolist() for mask in group.split_trained()],
        "behavior_logprobs": None if logprobs is None else [p.tolist() for p in np.split(logprobs, ends)],
    }


def _number(value: float) -> float | str:
    """A number, or the word for one that JSON has not: nan, inf, -inf."""
    return value if math.isfinite(value) else str(value)
