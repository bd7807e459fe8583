"""Collapses: their signs while there is still something to save, and their definition for a run that is over.

A limit watches one metric, averaged over its last steps. docs/results.md says of many limits how early they would have
warned, and how often for nothing; those that did best are `SIGNS_OF_COLLAPSE`.

A run has collapsed at step s if from s on its accuracy, averaged over the evaluations of the last 20 steps, is under
half of the best such average that it had before, and under the base policy's.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from driftproof.metrics import names

WINDOW = 20
"""Steps over which accuracy is averaged: stale data lets it swing, and one low evaluation is not the end of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound beyond which a metric gets alarming."""

    metric: str
    side: Literal["above", "below"]
    value: float
    relative: bool = False
    """Whether `value` is a multiple of the metric's mean over the run's first `window` steps; where that mean is not
    positive, the limit never alarms."""
    window: int = 20
    """Steps of the mean that is compared."""


SIGNS_OF_COLLAPSE = (
    Limit(metric=names.POSITIVE_NLL, side="above", value=1.25, relative=True, window=10),
    Limit(metric=names.REWARD, side="below", value=0.75, relative=True, window=10),
)
"""Warnings of `driftproof train`: right responses get improbable under the current policy, however old the data is; the
rewards fall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A limit that a run has crossed."""

    limit: Limit
    mean: float
    bound: float

    def __str__(self) -> str:
        mean = f"{self.limit.metric} was {self.mean:.3g} on average over the last {self.limit.window} steps"
        return f"{mean}, {self.limit.side} {self.bound:.3g}"


class CollapseDetector:
    """A detector that is shown the metrics of every step; each limit alarms once."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._watches = [_Watch(limit) for limit in limits]

    def observe(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """The alarms that this step sets off. A metric that a step does not have is passed over."""
        seen = [(watch, metrics[watch.limit.metric]) for watch in self._watches if watch.limit.metric in metrics]
        return [alarm for watch, value in seen if (alarm := watch.observe(value)) is not None]


class _Watch:
    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._recent: deque[float] = deque(maxlen=limit.window)
        self._bound: float | None = None if limit.relative else limit.value
        self._alarmed = False
        """Also set where the limit never will."""

    def observe(self, value: float) -> Alarm | None:
        self._recent.append(value)
        if self._alarmed or len(self._recent) < self.limit.window:
            return None
        mean = sum(self._recent) / self.limit.window
        if self._bound is None:
            self._bound = self.limit.value * mean
            self._alarmed = not mean > 0
            return None
        if not (mean > self._bound if self.limit.side == "above" else mean < self._bound):
            return None
        self._alarmed = True
        return Alarm(limit=self.limit, mean=mean, bound=self._bound)


def collapse_step(steps: Sequence[int], accuracies: Sequence[float]) -> int | None:
    """The step of the first evaluation from which the run stays collapsed; None if it has not collapsed.

    `steps` ascend and begin with the base policy's, step 0; an accuracy of NaN counts as 0.
    """
    averages = recent_means(steps, accuracies)
    base, collapsed = averages[0], None
    best = base
    for step, average in zip(steps, averages, strict=True):
        best = max(best, average)
        if average >= best / 2 or average >= base:
            collapsed = None
        elif collapsed is None:
            collapsed = step
    return collapsed


def recent_means(steps: Sequence[int], accuracies: Sequence[float]) -> list[float]:
    """At each evaluation the mean over those of the last `WINDOW` steps: later than `WINDOW` steps before it."""
    found = [(step, number_or_zero(accuracy)) for step, accuracy in zip(steps, accuracies, strict=True)]
    return [fmean(value for earlier, value in found if step - WINDOW < earlier <= step) for step, _ in found]


def number_or_zero(accuracy: float) -> float:
    """A policy whose probabilities are no numbers answers nothing: its accuracy is 0."""
    return 0.0 if math.isnan(accuracy) else accuracy
