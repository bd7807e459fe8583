"""Rules for which weights write the data of a step: age as something one sets, not something that happens.

A step trains `groups` groups. `sources(step, groups)` says for each of them after which update the weights that write
it were taken (0: the base policy); its age is the updates between that and the step, `step - 1 - source`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Staleness(Protocol):
    """A rule for the age of the data."""

    @property
    def oldest(self) -> int:
        """Largest age that occurs, in updates."""
        ...

    def sources(self, step: int, groups: int) -> list[int]:
        """The update after which the weights of each group of `step` (1-based) were taken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactLag:
    """Every batch was written `lag` updates ago; the first `lag` steps by the base policy.

    With lag 2 the sources of steps 1, 2, 3, 4, 5 are 0, 0, 0, 1, 2.
    """

    lag: int

    @property
    def oldest(self) -> int:
        return self.lag

    def sources(self, step: int, groups: int) -> list[int]:
        return [max(step - 1 - self.lag, 0)] * groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """New weights reach the sampler every `every` updates: ages 0 to every - 1 in turn (the ASymPO paper's set-up).

    With every 3 the sources of steps 1, 2, 3, 4, 5 are 0, 0, 0, 3, 3.
    """

    every: int

    @property
    def oldest(self) -> int:
        return self.every - 1

    def sources(self, step: int, groups: int) -> list[int]:
        return [(step - 1) // self.every * self.every] * groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The ages of a real run, step by step, from the start again when they are used up."""

    ages: tuple[tuple[int, ...], ...]
    """Ages of the groups of each step of that run, in updates; at least one step of at least one group."""

    @property
    def oldest(self) -> int:
        return max(max(ages) for ages in self.ages)

    def sources(self, step: int, groups: int) -> list[int]:
        ages: Sequence[int] = self.ages[(step - 1) % len(self.ages)]
        return [max(step - 1 - ages[group % len(ages)], 0) for group in range(groups)]
