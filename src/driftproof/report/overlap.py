"""Overlap of the two sides of a run: who is busy, how fast, and who waits for whom."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from driftproof.metrics import names

IDLE_SHARE = 0.1
"""A side that waits for less of the time than this is called busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Sums over some steps; shares of the wall time are None without any."""

    wall_seconds: float
    learner_seconds: float
    """The learner trained, published, recorded or checkpointed."""
    rollout_seconds: float
    """A rollout worker was busy; mean over workers."""
    learner_tokens: float
    """Response tokens trained."""
    rollout_tokens: float
    """Response tokens committed."""

    @property
    def learner_busy(self) -> float | None:
        return ratio(self.learner_seconds, self.wall_seconds)

    @property
    def rollout_busy(self) -> float | None:
        return ratio(self.rollout_seconds, self.wall_seconds)

    @property
    def efficiency(self) -> float | None:
        return ratio(max(self.learner_seconds, self.rollout_seconds), self.wall_seconds)

    def waiting(self, max_staleness: int) -> str:
        """Who waits for whom, in words; "" before the first step."""
        if self.learner_busy is None or self.rollout_busy is None:
            return ""
        if max_staleness == 0:
            return "the two sides take turns (max_staleness is 0)"
        if min(self.learner_busy, self.rollout_busy) > 1 - IDLE_SHARE:
            return "nobody waits: both sides are busy"
        if self.learner_busy < self.rollout_busy:
            return "learner waits for rollouts"
        return "rollouts wait for the learner (ahead as far as max_staleness allows)"


def overlap(steps: Sequence[Mapping[str, Any]], workers: int) -> Overlap:
    """The overlap of the steps whose metrics are given, written by so many rollout workers."""

    def total(name: str) -> float:
        return sum((finite(metrics.get(name)) or 0.0 for metrics in steps), 0.0)

    learner = (names.TRAIN_SECONDS, names.PUBLISH_SECONDS, names.RECORD_SECONDS, names.CHECKPOINT_SECONDS)
    return Overlap(
        wall_seconds=total(names.STEP_SECONDS),
        learner_seconds=sum(map(total, learner)),
        rollout_seconds=total(names.BUSY_SECONDS) / max(workers, 1),
        learner_tokens=total(names.RESPONSE_TOKENS),
        rollout_tokens=total(names.ROLLOUT_TOKENS),
    )


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None where there is no whole."""
    return part / whole if whole > 0 else None


def finite(value: object) -> float | None:
    """A finite number as it is; None for NaN, infinities and everything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
