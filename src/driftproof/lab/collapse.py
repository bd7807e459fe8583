"""What counts as a collapse, in one definition.

A run has collapsed at step s if from s on every evaluation is under half of the best accuracy the run had before, and
under the base policy's. A run that dips and comes back has not collapsed; nor has one that stayed near the base policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def collapse_step(steps: Sequence[int], accuracies: Sequence[float]) -> int | None:
    """The step of the first evaluation from which the run stays collapsed; None if it has not collapsed.

    Args:
        steps: of the evaluations, ascending; the first is the base policy's, step 0.
        accuracies: at these steps; NaN counts as `number_or_zero` says.
    """
    found = [number_or_zero(accuracy) for accuracy in accuracies]
    base, collapsed = found[0], None
    best = base
    for step, accuracy in zip(steps, found, strict=True):
        best = max(best, accuracy)
        if accuracy >= best / 2 or accuracy >= base:
            collapsed = None
        elif collapsed is None:
            collapsed = step
    return collapsed


def number_or_zero(accuracy: float) -> float:
    """A policy whose probabilities are no numbers answers nothing: its accuracy is 0."""
    return 0.0 if math.isnan(accuracy) else accuracy
