"""How well figures of a run announce its collapse: how early, and how often for nothing.

Guarantees: pure functions of results, with the same detector that `driftproof train` uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from driftproof.collapse import CollapseDetector, Limit
from driftproof.lab.runner import Result
from driftproof.lab.statistics import wilson
from driftproof.lab.summary import collapsed_at

CANDIDATES = (
    *(Limit(metric="health/scale_imbalance", side="above", value=value) for value in (4.0, 8.0)),
    *(Limit(metric="health/gradient_imbalance", side="above", value=value) for value in (1.0, 1.5, 2.0)),
    *(Limit(metric="health/entropy", side="below", value=value, relative=True) for value in (0.5, 0.25)),
    *(Limit(metric="health/entropy", side="above", value=value, relative=True) for value in (1.5, 2.0)),
    *(Limit(metric="grad_norm", side="above", value=value, relative=True) for value in (1.5, 2.0, 4.0)),
)
"""Limits that a report compares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What one limit would have said of many runs."""

    limit: Limit
    collapsed: int
    """Runs that collapsed."""
    leads: tuple[int, ...]
    """Steps from the alarm to the collapse, of the collapsed runs in which it came first."""
    healthy: int
    """Runs that did not collapse."""
    false_alarms: int
    """Healthy runs with an alarm."""

    @property
    def warned(self) -> int:
        return len(self.leads)

    @property
    def median_lead(self) -> float | None:
        """Steps; None where no collapse was announced."""
        return median(self.leads) if self.leads else None

    @property
    def warned_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the share of collapses that were announced."""
        return wilson(self.warned, self.collapsed)

    @property
    def false_alarm_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the share of healthy runs with an alarm."""
        return wilson(self.false_alarms, self.healthy)


def detect(results: Sequence[Result], limit: Limit) -> Detection:
    """What `limit` would have said, step by step."""
    leads, collapsed, healthy, false_alarms = [], 0, 0, 0
    for result in results:
        alarm, collapse = first_alarm(result, limit), collapsed_at(result)
        if collapse is None:
            healthy += 1
            false_alarms += alarm is not None
            continue
        collapsed += 1
        if alarm is not None and alarm < collapse:
            leads.append(collapse - alarm)
    return Detection(limit=limit, collapsed=collapsed, leads=tuple(leads), healthy=healthy, false_alarms=false_alarms)


def first_alarm(result: Result, limit: Limit) -> int | None:
    """The step of the first alarm; None if there is none."""
    detector = CollapseDetector([limit])
    series = result.signals.get(limit.metric, ())
    for step, value in enumerate(series, start=1):
        if detector.observe({limit.metric: value} if value is not None else {}):
            return step
    return None
