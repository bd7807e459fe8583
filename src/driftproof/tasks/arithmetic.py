"""Column addition: `47+85=` asks for `132`. The same seed gives the same prompts everywhere."""

from __future__ import annotations

import numpy as np

from driftproof.errors import TaskError
from driftproof.tasks.protocol import Task
from driftproof.tasks.split import generator, hold_out
from driftproof.types import Prompt

_MOST_PROMPTS = 50_000
"""Beyond this the pairs are drawn, not listed."""
_MOST_DIGITS = 18
"""Operands are drawn as 64-bit integers."""


def arithmetic(*, digits: int = 2, heldout: int = 512, seed: int = 0) -> Task:
    """Sums of two numbers of at most `digits` digits, not padded.

    With 1 or 2 digits the prompts are all 10^(2 digits) pairs, with more 50,000 different pairs drawn by `seed`.
    `heldout` of them are never trained on. The verifier is "exact".

    Raises:
        TaskError: `digits` is not between 1 and 18, `seed` is negative, or `heldout` leaves nothing to train on.
    """
    if not 1 <= digits <= _MOST_DIGITS:
        raise TaskError(f"arithmetic: digits is {digits}; it must be between 1 and {_MOST_DIGITS}")
    random = generator(seed)
    train, held = hold_out(_pairs(10**digits, random), heldout, random, f"arithmetic with digits={digits}")
    return Task(name="arithmetic", train=_prompts(train), heldout=_prompts(held), verifier="exact")


def _pairs(limit: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Different pairs of numbers below `limit`."""
    if limit**2 <= _MOST_PROMPTS:
        return [(a, b) for a in range(limit) for b in range(limit)]
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < _MOST_PROMPTS:
        drawn = random.integers(limit, size=(_MOST_PROMPTS, 2)).tolist()
        pairs.update(dict.fromkeys((a, b) for a, b in drawn))
    return list(pairs)[:_MOST_PROMPTS]


def _prompts(pairs: list[tuple[int, int]]) -> tuple[Prompt, ...]:
    return tuple(Prompt(index=i, text=f"{a}+{b}=", answer=str(a + b)) for i, (a, b) in enumerate(pairs))
