"""The contract of a task: prompts to learn on, prompts held out, and who decides what a response is worth.

A task that makes one list of prompts splits it here: drawn by a seed, disjoint, each part numbered from 0.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np

from driftproof.errors import TaskError
from driftproof.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """One prompt with the responses that somebody else's model wrote to it."""

    prompt: Prompt
    texts: tuple[str, ...]
    """[G], G >= 1."""
    rewards: tuple[float, ...]
    """[G], finite; 1.0 and 0.0 for responses marked correct or not, NaN for those without a reward."""
    unfinished: frozenset[int] = frozenset()
    """Positions of the responses that a token limit ended; they have no end-of-sequence token."""

    @property
    def mixed(self) -> bool:
        """Whether some responses are worth more than others."""
        return len({reward for reward in self.rewards if not math.isnan(reward)}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Prompts in two splits, and the name of the verifier that scores responses to them."""

    name: str
    train: Sequence[Prompt]
    """Index i holds the prompt with `index == i`."""
    heldout: Sequence[Prompt]
    """Never dispatched to training; same numbering, from 0."""
    verifier: str | tuple[str, ...]
    """Name in `driftproof.verify`, or those of several functions whose rewards add up."""
    weights: tuple[float, ...] = ()
    """Weight of each of several functions; empty: 1 for all."""
    gold: Callable[[Prompt], str] = attrgetter("answer")
    """How a response would write the right answer."""
    recorded: Sequence[RecordedGroup] = ()
    """Groups of the last training prompts, in their order; the prompts before them are answered live."""
    recorded_heldout: Sequence[RecordedGroup] = ()
    """Groups of the held-out prompts, in their order: of all of them or of none."""
    wrap: Callable[[str], str] = field(default=str, compare=False)
    """The text of a prompt, made of a question as files have it."""
    dropped: Sequence[str] = ()
    """Places of the prompts that were left out because they are too long."""

    @property
    def live(self) -> Sequence[Prompt]:
        """The training prompts that have no recorded group."""
        return self.train[: len(self.train) - len(self.recorded)]

    @property
    def answered(self) -> bool:
        """Whether every prompt has its group on record, so that nothing is left to write or to score."""
        return bool(self.recorded) and not self.live and len(self.recorded_heldout) == len(self.heldout)


def generator(seed: int) -> np.random.Generator:
    """The random numbers of a task; raises TaskError where `seed` is negative."""
    if seed < 0:
        raise TaskError(f"seed is {seed}; it must be 0 or more")
    return np.random.default_rng(seed)


def hold_out(
    prompts: Sequence[Prompt], count: int, random: np.random.Generator, source: str
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """Training and held-out prompts, shuffled and numbered, the latter `count`; TaskError, naming `source`, where that
    leaves nothing to train on."""
    if not 0 <= count < len(prompts):
        raise TaskError(
            f"{source}: heldout is {count} of {len(prompts)} prompts; "
            f"it must be between 0 and {len(prompts) - 1}, so that at least one is left to train on"
        )
    shuffled = [prompts[i] for i in random.permutation(len(prompts))]
    return numbered(shuffled[count:]), numbered(shuffled[:count])


def own_rewards(verifier: str | Sequence[str]) -> bool:
    """Whether rewards come, at least in part, from functions of the user's, which may read every column."""
    return any(":" in name for name in ([verifier] if isinstance(verifier, str) else verifier))


def needs_answer(verifier: str | Sequence[str]) -> bool:
    """Whether a prompt must have an answer to compare with; functions of the user's may need none."""
    return not all(":" in name for name in ([verifier] if isinstance(verifier, str) else verifier))


def identity(prompt: Prompt) -> tuple[object, str]:
    """The question of a prompt, whatever system message stands before it: equal for prompts that are the same."""
    return prompt.turns, prompt.text.strip()


def numbered(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts with `index` set to their position."""
    return tuple(replace(prompt, index=index) for index, prompt in enumerate(prompts))
