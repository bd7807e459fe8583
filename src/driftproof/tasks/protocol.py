"""The contract of a task: prompts to learn on, prompts held out, and who decides what a response is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from driftproof.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """One prompt with the responses that somebody else's model wrote to it."""

    prompt: Prompt
    texts: tuple[str, ...]
    """[G], G >= 1."""
    rewards: tuple[float, ...]
    """[G], finite; 1.0 and 0.0 for responses marked correct or not."""
    unfinished: frozenset[int] = frozenset()
    """Positions of the responses that a token limit ended; they have no end-of-sequence token."""

    @property
    def mixed(self) -> bool:
        """Whether some responses are worth more than others."""
        return len(set(self.rewards)) > 1


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
    recorded: Sequence[RecordedGroup] = ()
    """Groups of the last training prompts, in their order; the prompts before them are answered live."""
    recorded_heldout: Sequence[RecordedGroup] = ()
    """Groups of the held-out prompts, in their order: of all of them or of none."""

    @property
    def live(self) -> Sequence[Prompt]:
        """The training prompts that have no recorded group."""
        return self.train[: len(self.train) - len(self.recorded)]

    @property
    def answered(self) -> bool:
        """Whether every prompt has its group on record, so that nothing is left to write or to score."""
        return bool(self.recorded) and not self.live and len(self.recorded_heldout) == len(self.heldout)
