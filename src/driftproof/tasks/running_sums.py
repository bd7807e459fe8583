"""Running totals: `3+9+4+7=` asks for `3 12 16 23`. The same seed gives the same prompts everywhere.

The responses are as unequal in length as the prompts: one total for each term.
"""

from __future__ import annotations

from itertools import accumulate, product

import numpy as np

from driftproof.errors import TaskError
from driftproof.tasks.protocol import Task
from driftproof.tasks.split import generator, hold_out
from driftproof.types import Prompt

_MOST_PROMPTS = 50_000
"""Shared equally by the numbers of terms."""
_MOST_TERMS = 100
_MOST_DIGITS = 18
"""Terms are drawn as 64-bit integers."""

Terms = tuple[int, ...]


def running_sums(
    *, least_terms: int = 2, most_terms: int = 6, digits: int = 1, heldout: int = 512, seed: int = 0
) -> Task:
    """Totals after each of `least_terms` to `most_terms` numbers of at most `digits` digits, not padded.

    Each number of terms has the same share of 50,000 different prompts, drawn by `seed`, or all prompts there are
    where those are fewer. `heldout` prompts are never trained on. The verifier is "exact".

    Raises:
        TaskError: not 2 <= `least_terms` <= `most_terms` <= 100, `digits` is not between 1 and 18, `seed` is negative,
            or `heldout` leaves nothing to train on.
    """
    if not 2 <= least_terms <= most_terms <= _MOST_TERMS:
        raise TaskError(
            f"running_sums: least_terms is {least_terms} and most_terms {most_terms}; "
            f"they must be between 2 and {_MOST_TERMS}, least_terms at most most_terms"
        )
    if not 1 <= digits <= _MOST_DIGITS:
        raise TaskError(f"running_sums: digits is {digits}; it must be between 1 and {_MOST_DIGITS}")
    random = generator(seed)
    counts = range(least_terms, most_terms + 1)
    share = _MOST_PROMPTS // len(counts)
    sums = [terms for count in counts for terms in _different(count, 10**digits, share, random)]
    source = f"running_sums with least_terms={least_terms}, most_terms={most_terms}, digits={digits}"
    train, held = hold_out(sums, heldout, random, source)
    return Task(name="running_sums", train=_prompts(train), heldout=_prompts(held), verifier="exact")


def _different(count: int, limit: int, most: int, random: np.random.Generator) -> list[Terms]:
    """Different sequences of `count` numbers below `limit`: all there are, or `most` of them."""
    if limit**count <= most:
        return list(product(range(limit), repeat=count))
    drawn: dict[Terms, None] = {}
    while len(drawn) < most:
        drawn.update(dict.fromkeys(map(tuple, random.integers(limit, size=(most, count)).tolist())))
    return list(drawn)[:most]


def _prompts(sums: list[Terms]) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(index=i, text="+".join(map(str, terms)) + "=", answer=" ".join(map(str, accumulate(terms))))
        for i, terms in enumerate(sums)
    )
