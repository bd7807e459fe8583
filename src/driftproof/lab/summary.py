"""The findings of a grid, over its seeds.

Guarantees: pure functions of results; a part of a grid is summarized as far as it goes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeVar

from driftproof.evaluation.score import bootstrap, wilson
from driftproof.lab.experiment import Result
from driftproof.lab.grid import Cell, View, planned_cells
from driftproof.lab.runner import tuned_rates
from driftproof.lab.settings import LabConfig
from driftproof.metrics.collapse import collapse_step, number_or_zero

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The runs of one objective on data of one age at one learning rate, which differ by their seeds."""

    view: View
    label: str
    staleness: int
    lr: float
    seeds: tuple[int, ...]
    base: float
    """Mean accuracy of the base policy; `final` is that after the last step."""
    final: float
    final_interval: tuple[float, float]
    """95% bootstrap interval of `final` over the seeds."""
    best: float
    """Mean over the seeds of the best accuracy of a run."""
    collapse_steps: tuple[int, ...]
    """Collapses of the runs that have collapsed, ascending."""

    @property
    def runs(self) -> int:
        return len(self.seeds)

    @property
    def collapsed(self) -> int:
        return len(self.collapse_steps)

    @property
    def collapse_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the share that collapses."""
        return wilson(self.collapsed, self.runs)

    @property
    def median_collapse_step(self) -> float | None:
        return median(self.collapse_steps) if self.collapse_steps else None


def accuracies(result: Result) -> list[float]:
    """Accuracy at every evaluation of a run; NaN counts as 0."""
    return [number_or_zero(row["accuracy"]) for row in result.rows]


def collapsed_at(result: Result) -> int | None:
    """The step of a run's collapse; None if it has not collapsed."""
    return collapse_step([int(row["step"]) for row in result.rows], accuracies(result))


def summarize(results: Sequence[Result]) -> list[Summary]:
    """One summary per view, objective, age and learning rate, in the order of the results."""
    alike = grouped(results, lambda cell: (cell.view, cell.label, cell.staleness, cell.lr))
    return [_summary(runs) for runs in alike.values()]


def grouped(results: Sequence[Result], by: Callable[[Cell], Key]) -> dict[Key, list[Result]]:
    """The results by something about their cells."""
    found: dict[Key, list[Result]] = {}
    for result in results:
        found.setdefault(by(result.cell), []).append(result)
    return found


def views_of(summaries: Sequence[Summary]) -> list[View]:
    """The views there are, in their order."""
    return list(dict.fromkeys(summary.view for summary in summaries))


def missing_cells(config: LabConfig, results: Sequence[Result]) -> list[Cell]:
    """The runs of a grid without a result. While tuning runs are missing, those of the view "tuned" have rate 0."""
    done = {result.cell.key for result in results}
    return [cell for cell in planned_cells(config, tuned_rates(config, results)) if cell.key not in done]


def _summary(runs: Sequence[Result]) -> Summary:
    cell = runs[0].cell
    final = [accuracies(run)[-1] for run in runs]
    return Summary(
        view=cell.view,
        label=cell.label,
        staleness=cell.staleness,
        lr=cell.lr,
        seeds=tuple(run.cell.seed for run in runs),
        base=fmean(accuracies(run)[0] for run in runs),
        final=fmean(final),
        final_interval=bootstrap(final),
        best=fmean(max(accuracies(run)) for run in runs),
        collapse_steps=tuple(sorted(step for run in runs if (step := collapsed_at(run)) is not None)),
    )
