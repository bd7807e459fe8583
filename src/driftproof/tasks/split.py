"""Training and held-out prompts: drawn by a seed, disjoint in their rows, each split numbered from 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from driftproof.errors import TaskError
from driftproof.types import Prompt

T = TypeVar("T")


def generator(seed: int) -> np.random.Generator:
    """The random numbers of a task.

    Raises:
        TaskError: `seed` is negative.
    """
    if seed < 0:
        raise TaskError(f"seed is {seed}; it must be 0 or more")
    return np.random.default_rng(seed)


def hold_out(items: Sequence[T], count: int, random: np.random.Generator, source: str) -> tuple[list[T], list[T]]:
    """Shuffle `items`; returns (training, held-out), the latter `count` of them.

    Raises:
        TaskError: `count` is negative or leaves nothing to train on; it names `source`.
    """
    if not 0 <= count < len(items):
        raise TaskError(
            f"{source}: heldout is {count} of {len(items)} prompts; "
            f"it must be between 0 and {len(items) - 1}, so that at least one is left to train on"
        )
    order = random.permutation(len(items)).tolist()
    return [items[i] for i in order[count:]], [items[i] for i in order[:count]]


def split_files(
    read: Callable[[str | Path], list[Prompt]], path: str | Path, heldout: int | str | Path, seed: int
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Training and held-out prompts of `path`; held out are `heldout` of them, or all of the file `heldout`.

    Raises:
        TaskError: what `read` and `hold_out` raise.
    """
    if isinstance(heldout, int):
        train, held = hold_out(read(path), heldout, generator(seed), str(path))
    else:
        train, held = read(path), read(heldout)
    return numbered(train), numbered(held)


def numbered(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts with `index` set to their position."""
    return tuple(replace(prompt, index=index) for index, prompt in enumerate(prompts))
