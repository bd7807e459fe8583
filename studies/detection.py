"""Alarms that figures of a run give of its collapse: how early, and how often for nothing.

Guarantees: pure functions of results, with the same detector that `driftproof train` uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from driftproof.evaluation.score import wilson
from driftproof.lab.experiment import Result
from driftproof.lab.summary import accuracies, collapsed_at
from driftproof.metrics import names
from driftproof.metrics.collapse import SIGNS_OF_COLLAPSE, CollapseDetector, Limit

Limits = tuple[Limit, ...]
"""Limits of which any may alarm."""

CANDIDATES: tuple[Limits, ...] = (
    SIGNS_OF_COLLAPSE,
    *((replace(SIGNS_OF_COLLAPSE[0], value=value),) for value in (1.1, 1.25, 1.5, 2.0)),
    *((replace(SIGNS_OF_COLLAPSE[1], value=value),) for value in (0.9, 0.75, 0.5)),
    *((Limit(metric=names.SCALE_IMBALANCE, side="above", value=value),) for value in (4.0, 8.0)),
    *((Limit(metric=names.GRADIENT_IMBALANCE, side="above", value=value),) for value in (1.0, 2.0)),
    *((Limit(metric=names.ENTROPY, side="below", value=value, relative=True, window=10),) for value in (0.5, 0.25)),
    *((Limit(metric=names.ENTROPY, side="above", value=value, relative=True, window=10),) for value in (1.25, 1.5)),
    *((Limit(metric=names.GRAD_NORM, side="above", value=value, relative=True, window=10),) for value in (1.5, 2.0)),
)
"""The limits that docs/results.md compares; first those that `driftproof train` warns of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The alarms of some limits over many runs."""

    limits: Limits
    collapsed: int
    """Runs that collapsed."""
    leads: tuple[int, ...]
    """Steps from the alarm to the collapse, of the collapsed runs in which it came first."""
    late: int
    """Collapsed runs with an alarm at their collapse or after it."""
    lost: int
    """Runs that did not collapse, and ended no better than the base policy."""
    lost_alarms: int
    """Lost runs with an alarm."""
    learned: int
    """Runs that did not collapse, and ended better than the base policy."""
    false_alarms: int
    """Runs that learned, with an alarm."""

    @property
    def warned(self) -> int:
        return len(self.leads)

    @property
    def median_lead(self) -> float | None:
        """Median of the leads, in steps; None where no collapse was announced."""
        return median(self.leads) if self.leads else None

    @property
    def warned_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the share of collapses that were announced."""
        return wilson(self.warned, self.collapsed)

    @property
    def false_alarm_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the share of runs with an alarm among those that learned."""
        return wilson(self.false_alarms, self.learned)


def detect(results: Sequence[Result], limits: Limits) -> Detection:
    """The alarms that `limits` would have given, step by step."""
    leads: list[int] = []
    lost: list[bool] = []
    learned: list[bool] = []
    late = 0
    for result in results:
        alarm, collapse = first_alarm(result, limits), collapsed_at(result)
        if collapse is None:
            base, *_, final = accuracies(result)
            (learned if final > base else lost).append(alarm is not None)
        elif alarm is not None and alarm < collapse:
            leads.append(collapse - alarm)
        else:
            late += alarm is not None
    return Detection(
        limits=limits,
        collapsed=len(results) - len(lost) - len(learned),
        leads=tuple(leads),
        late=late,
        lost=len(lost),
        lost_alarms=sum(lost),
        learned=len(learned),
        false_alarms=sum(learned),
    )


def first_alarm(result: Result, limits: Limits) -> int | None:
    """The step of the first alarm; None if there is none."""
    detector = CollapseDetector(limits)
    steps = max((len(series) for series in result.signals.values()), default=0)
    for step in range(steps):
        metrics = {name: value for name, series in result.signals.items() if (value := series[step]) is not None}
        if detector.observe(metrics):
            return step + 1
    return None


def detection_rows(detections: Sequence[Detection]) -> list[list[str]]:
    """Header and a row per set of limits."""
    header = ["alarm when", "collapses announced", "median lead", "seen late", "lost runs", "false alarms"]
    rows = []
    for found in detections:
        (rare, often), (few, many) = found.warned_interval, found.false_alarm_interval
        lead = found.median_lead
        rows.append(
            [
                " or ".join(map(_limit_text, found.limits)),
                f"{found.warned}/{found.collapsed} [{rare:.2f}, {often:.2f}]",
                "" if lead is None else f"{lead:g} steps",
                f"{found.late}/{found.collapsed}",
                f"{found.lost_alarms}/{found.lost}",
                f"{found.false_alarms}/{found.learned} [{few:.2f}, {many:.2f}]",
            ]
        )
    return [header, *rows]


def _limit_text(limit: Limit) -> str:
    return f"{limit.metric} {limit.side} {limit.value:g}" + (
        f" of its first {limit.window} steps" if limit.relative else ""
    )
