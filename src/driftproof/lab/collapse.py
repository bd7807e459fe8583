"""What counts as a collapse, in one definition.

Accuracy is averaged over the evaluations of the last 20 steps. A run has collapsed at step s if from s on that average
is under half of the best one it had before, and under the base policy's accuracy. A run that dips and comes back has
not collapsed; nor has one that stayed near the base policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

WINDOW = 20
"""Steps. Stale data lets accuracy swing, and a single low evaluation is not the end of a run."""


def collapse_step(steps: Sequence[int], accuracies: Sequence[float]) -> int | None:
    """The step of the first evaluation from which the run stays collapsed; None if it has not collapsed.

    Args:
        steps: of the evaluations, ascending; the first is the base policy's, step 0.
        accuracies: at these steps; NaN counts as `number_or_zero` says.
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
