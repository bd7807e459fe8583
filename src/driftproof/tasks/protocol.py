"""The contract of a task: prompts to learn on, prompts held out, and who decides what a response is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from driftproof.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Prompts in two splits, and the name of the verifier that scores responses to them."""

    name: str
    train: Sequence[Prompt]
    """Index i holds the prompt with `index == i`."""
    heldout: Sequence[Prompt]
    """Never dispatched to training; same numbering, from 0."""
    verifier: str
    """Name in `driftproof.verify`."""
    gold: Callable[[Prompt], str] = attrgetter("answer")
    """How a response would write the right answer."""
