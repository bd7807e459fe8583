"""One picture of a run.

Guarantees: works for any ledger, from no steps to very many, whatever figures it lacks (a panel without data says so);
touches no global state of matplotlib.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftproof.ledger.reader import LedgerReader
from driftproof.metrics import names
from driftproof.report.figure import BLUE, GREEN, GREY, ORANGE, has_data, new_figure, style_panel
from driftproof.report.overlap import finite, overlap
from driftproof.report.summary import read_recipe, summarize

Series = NDArray[np.float64]

POINTS = 1500
"""Most points of a curve; more are merged."""
FEW = 10
"""Points of a curve up to which each is marked."""


def draw(ledger: LedgerReader, path: Path) -> None:
    """Write the picture of a run as PNG."""
    model = Path(read_recipe(ledger).get("model", {}).get("path", ""))
    run = _Run(ledger, model)
    figure = new_figure(6.8, _title(run, model.name), title_size=13, dpi=130, pad=0.08)
    # Twelve rows, so that a panel can be cut in two of unequal height.
    grid = figure.add_gridspec(12, 3)
    _reward(figure.add_subplot(grid[:6, :2]), run)
    speed = figure.add_subplot(grid[:4, 2])
    _speed(speed, run)
    _busy(figure.add_subplot(grid[4:6, 2], sharex=speed), run)
    nll = figure.add_subplot(grid[6:10, 0])
    _nll(nll, run)
    _imbalance(figure.add_subplot(grid[10:, 0], sharex=nll), run)
    _age(figure.add_subplot(grid[6:, 1]), run)
    _entropy_or_gradient(figure.add_subplot(grid[6:, 2]), run)
    figure.savefig(path, format="png")


class _Run:
    def __init__(self, ledger: LedgerReader, model: Path) -> None:
        self.steps = ledger.steps()
        self.workers = max(len(ledger.workers()), 1)
        self.max_staleness = ledger.plan.max_staleness
        self.summary = summarize(ledger, model)
        self.x = merge(self.series("step"), POINTS)
        self.window = max(min(20, len(self.steps) // 3), len(self.steps) // 50, 1)
        """Steps of the moving means; of a short run, so few that its curve is not a mean of all."""
        self.burst = max(20, len(self.steps) // 50)
        """Steps of the moving sums of what comes in bursts."""

    def series(self, name: str) -> Series:
        """float64 [steps]; NaN where a step does not have the metric."""
        values = (finite(step.get(name)) for step in self.steps)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def moving_mean(values: Series, window: int) -> Series:
    """float64 [n]: mean over the `window` values around each, NaNs left out; NaN where there are only NaNs."""
    position = np.arange(len(values))
    first = np.maximum(position - window // 2, 0)
    last = np.minimum(position + (window + 1) // 2, len(values))
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    counts = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    with np.errstate(invalid="ignore"):
        return np.asarray((sums[last] - sums[first]) / (counts[last] - counts[first]))


def merge(values: Series, points: int, *, largest: bool = False) -> Series:
    """float64 [at most `points`]: means (or maxima) of runs of equal length, NaNs left out."""
    if not len(values):
        return values
    starts = np.arange(0, len(values), -(-len(values) // points))
    if largest:
        return np.asarray(np.fmax.reduceat(values, starts))
    sums = np.add.reduceat(np.nan_to_num(values), starts)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / np.add.reduceat(np.isfinite(values).astype(int), starts))


def _title(run: _Run, model: str) -> str:
    steps, seconds = run.summary.steps, run.summary.wall_seconds
    if seconds < 120:
        time = f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    else:
        time = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    parts = [run.summary.objective, model, f"{steps:,} {'step' if steps == 1 else 'steps'} in {time}"]
    return "  ·  ".join(part for part in parts if part)


def _reward(axes: Any, run: _Run) -> None:
    summary = run.summary
    _panel(axes, "Reward", run)
    means = f", mean of {run.window} steps" if run.window > 1 else ""
    _smooth(axes, run, run.series(names.REWARD), BLUE, f"reward{means}")
    _marks(axes, run, "o", ORANGE, "held-out accuracy, sampled", summary.accuracy_before, summary.accuracy_after)
    _marks(axes, run, "D", ORANGE, "held-out accuracy, greedy", summary.greedy_before, summary.greedy_after)
    _finish(axes, loc="lower right")


def _nll(axes: Any, run: _Run) -> None:
    _panel(axes, "Mean token NLL of the responses (nats)", run)
    heldout = (run.summary.nll_heldout_before or {}, run.summary.nll_heldout_after or {})
    for name, sign, color, marker, style in (
        (names.POSITIVE_NLL, "positive", BLUE, "o", "-"),
        (names.NEGATIVE_NLL, "negative", ORANGE, "D", "--"),
    ):
        values = run.series(name)
        label = sign if np.isfinite(values).any() else f"{sign}: none"
        _smooth(axes, run, values, color, label, style)
        before, after = (result.get(f"{sign}_nll") for result in heldout)
        _marks(axes, run, marker, color, f"{sign}, held out", before, after)
    _finish(axes, x_label=False)
    _from_zero(axes)


def _imbalance(axes: Any, run: _Run) -> None:
    _panel(axes, "Scale imbalance: negative / positive", run)
    _smooth(axes, run, run.series(names.SCALE_IMBALANCE), GREEN, "")
    _reference(axes, 1)
    _finish(axes, "needs positives and negatives")
    _from_zero(axes)


def _age(axes: Any, run: _Run) -> None:
    _panel(axes, "Age of the data (steps)", run)
    largest = merge(run.series(names.AGE_MAX), POINTS, largest=True)
    look = {"color": ORANGE, "linewidth": 1, "linestyle": "--", "marker": _marker(largest), "markersize": 5}
    axes.plot(run.x, largest, label="max", **look)
    _smooth(axes, run, run.series(names.AGE_MEAN), BLUE, "mean")
    _reference(axes, run.max_staleness, f"max_staleness: {run.max_staleness}")
    _finish(axes, loc="lower right")
    _from_zero(axes)


def _entropy_or_gradient(axes: Any, run: _Run) -> None:
    title, values = "Entropy of the policy (nats per token)", run.series(names.ENTROPY)
    if not np.isfinite(values).any():
        title, values = "Gradient norm", run.series(names.GRAD_NORM)
    _panel(axes, title, run)
    _smooth(axes, run, values, BLUE, "")
    _finish(axes)


def _speed(axes: Any, run: _Run) -> None:
    _panel(axes, "Speed of both sides (tokens/s while busy)", run)
    learner, rollouts = _busy_seconds(run)
    _line(axes, run, _quotient(run, run.series(names.ROLLOUT_TOKENS), rollouts), GREEN, "rollouts", "-")
    _line(axes, run, _quotient(run, run.series(names.RESPONSE_TOKENS), learner), BLUE, "learner", "--")
    _finish(axes, x_label=False)
    _from_zero(axes)


def _busy(axes: Any, run: _Run) -> None:
    words = overlap(run.steps, run.workers).waiting(run.max_staleness).split(" (")[0]
    _panel(axes, f"Busy: {words}" if words else "Busy", run)
    wall = run.series(names.STEP_SECONDS)
    learner, rollouts = _busy_seconds(run)
    # Work of before the first step is reported in it.
    _line(axes, run, np.minimum(100 * _quotient(run, rollouts, wall), 100), GREEN, "", "-")
    _line(axes, run, 100 * _quotient(run, learner, wall), BLUE, "", "--")
    _finish(axes)
    axes.set_ylim(0, 110)
    axes.set_yticks([0, 50, 100], ["0", "50", "100 %"])


def _busy_seconds(run: _Run) -> tuple[Series, Series]:
    """Busy time of the learner and of a rollout worker in each step, in seconds."""
    learner = run.series(names.STEP_SECONDS) - run.series(names.WAIT_SECONDS)
    return learner, run.series(names.BUSY_SECONDS) / run.workers


def _quotient(run: _Run, part: Series, whole: Series) -> Series:
    """part / whole, both summed over the moving window: groups arrive in bursts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient = moving_mean(part, run.burst) / moving_mean(whole, run.burst)
    return np.where(np.isfinite(quotient), quotient, np.nan)


def _smooth(axes: Any, run: _Run, values: Series, color: str, label: str, style: str = "-") -> None:
    """The values themselves, faint, and their moving mean."""
    axes.plot(run.x, merge(values, POINTS), color=color, linewidth=0.7, alpha=0.25)
    _line(axes, run, moving_mean(values, run.window), color, label, style)


def _line(axes: Any, run: _Run, values: Series, color: str, label: str, style: str) -> None:
    look = {"color": color, "linewidth": 1.8, "linestyle": style, "marker": _marker(values), "markersize": 5}
    axes.plot(run.x, merge(values, POINTS), label=label or None, **look)


def _marker(values: Series) -> str:
    """A line through a single point would not be seen, and through a few it is read as more than there are."""
    return "o" if np.isfinite(values).sum() <= FEW else ""


def _marks(axes: Any, run: _Run, marker: str, color: str, name: str, before: float | None, after: float | None) -> None:
    """A value measured before the first and after the last step, with its figures in the legend."""
    points = [(0, before), (run.summary.steps, after)]
    known = [(step, value) for step, value in points if value is not None]
    if not known:
        return
    figures = " → ".join("-" if value is None else f"{value:.3f}" for _, value in points)
    look = {"marker": marker, "markersize": 8, "markeredgewidth": 1.8, "markeredgecolor": color}
    look |= {"markerfacecolor": color if marker == "o" else "white", "linestyle": "", "clip_on": False, "zorder": 5}
    axes.plot(*zip(*known, strict=True), label=f"{name}: {figures}", **look)


def _panel(axes: Any, title: str, run: _Run) -> None:
    style_panel(axes, title, title_size=10, label_size=8, ticks=6)
    axes.margins(y=0.08)
    # A little room, so that what stands at the last step is seen whole.
    axes.set_xlim(0, max(run.summary.steps, 1) * 1.02)


def _from_zero(axes: Any) -> None:
    """Let the values begin at 0 and end a little above the highest, be there one or many."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()] or [np.zeros(0)])
    axes.set_ylim(0, max(values[np.isfinite(values)], default=1.0) * 1.08 or 1.0)


def _reference(axes: Any, value: float, label: str | None = None) -> None:
    if has_data(axes):
        axes.axhline(value, color=GREY, linewidth=1, linestyle=":", label=label)


def _finish(axes: Any, missing: str = "not recorded", *, loc: str = "best", x_label: bool = True) -> None:
    """Legend; or, in a panel without data, why there is none."""
    if x_label:
        axes.set_xlabel("step", fontsize=9)
    else:
        axes.tick_params(labelbottom=False)
    if not has_data(axes):
        axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)
        axes.tick_params(labelleft=False)
        return
    if axes.get_legend_handles_labels()[1]:
        # The usual place is free of curves that are long.
        few = max(len(line.get_xdata()) for line in axes.get_lines()) <= FEW
        axes.legend(fontsize=8, frameon=False, loc="best" if few else loc)
