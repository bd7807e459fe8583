"""Sums of two numbers, and running sums with all their totals. The same seed gives the same prompts everywhere."""

from collections.abc import Callable, Sequence
from itertools import accumulate, product

import numpy as np

from driftproof.errors import TaskError
from driftproof.tasks.protocol import Task, generator, hold_out
from driftproof.types import Prompt

_MOST_PROMPTS = 50_000
"""Shared equally by the numbers of terms."""
_MOST_TERMS = 100
_MOST_DIGITS = 18
"""Terms are drawn as 64-bit integers."""


def arithmetic(*, digits: int = 2, heldout: int = 512, seed: int = 0) -> Task:
    """Sums of two numbers of at most `digits` digits (1 to 18), not padded.

    With 1 or 2 digits the prompts are all 10^(2 digits) pairs, with more 50,000 different pairs drawn by `seed`.
    `heldout` of them are never trained on. The verifier is "exact".
    """
    fields = f"with digits={digits}"
    return _task("arithmetic", fields, range(2, 3), digits, heldout, seed, lambda terms: str(sum(terms)))


def running_sums(
    *, least_terms: int = 2, most_terms: int = 6, digits: int = 1, heldout: int = 512, seed: int = 0
) -> Task:
    """Totals after each of `least_terms` to `most_terms` numbers (2 to 100) of at most `digits` digits (1 to 18).

    `3+9+4+7=` asks for `3 12 16 23`: the responses are as unequal in length as the prompts.

    Each number of terms has the same share of 50,000 different prompts, drawn by `seed`, or all prompts there are
    where those are fewer. `heldout` prompts are never trained on. The verifier is "exact".
    """
    if not 2 <= least_terms <= most_terms <= _MOST_TERMS:
        raise TaskError(
            f"running_sums: least_terms is {least_terms} and most_terms {most_terms}; "
            f"they must be between 2 and {_MOST_TERMS}, least_terms at most most_terms"
        )
    fields = f"with least_terms={least_terms}, most_terms={most_terms}, digits={digits}"
    counts = range(least_terms, most_terms + 1)
    return _task("running_sums", fields, counts, digits, heldout, seed, lambda t: " ".join(map(str, accumulate(t))))


def _task(
    name: str, fields: str, counts: range, digits: int, heldout: int, seed: int, answer: Callable[[Sequence[int]], str]
) -> Task:
    """A task of sums that have one of `counts` terms; `fields` describes it in errors."""
    if not 1 <= digits <= _MOST_DIGITS:
        raise TaskError(f"{name}: digits is {digits}; it must be between 1 and {_MOST_DIGITS}")
    random = generator(seed)
    share = _MOST_PROMPTS // len(counts)
    prompts = [
        Prompt(index=0, text="+".join(map(str, terms)) + "=", answer=answer(terms))
        for count in counts
        for terms in _different(count, 10**digits, share, random)
    ]
    train, held = hold_out(prompts, heldout, random, f"{name} {fields}")
    return Task(name=name, train=train, heldout=held, verifier="exact")


def _different(count: int, limit: int, most: int, random: np.random.Generator) -> list[tuple[int, ...]]:
    """Different sequences of `count` numbers below `limit`: all there are, or `most` of them."""
    if limit**count <= most:
        return list(product(range(limit), repeat=count))
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < most:
        drawn.update(dict.fromkeys(map(tuple, random.integers(limit, size=(most, count)).tolist())))
    return list(drawn)[:most]
