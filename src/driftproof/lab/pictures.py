"""The pictures of a grid.

Guarantees: drawn from any part of a grid with at least one run; lines can be told apart without their colours.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from driftproof.lab.experiment import Result
from driftproof.lab.grid import VIEWS, age_name
from driftproof.lab.settings import LabConfig
from driftproof.lab.summary import accuracies, collapsed_at, grouped, summarize, views_of
from driftproof.metrics import names
from driftproof.report.figure import COLORS, GREY, has_data, new_figure, style_panel

Series = NDArray[np.float64]
Looks = Mapping[str, Mapping[str, Any]]
Panel = Callable[[Any, Looks, Sequence[Result]], None]

MARKERS = "osD^vPX"
STYLES = ("-", "--", ":")
MOST_COLUMNS = 4


def draw_pictures(config: LabConfig, results: Sequence[Result], directory: Path) -> dict[str, str]:
    """Write the pictures of all runs but tuning ones; their file names by what they show, {} without such runs."""
    drawn = [result for result in results if result.cell.view != "tuning"]
    if not drawn:
        return {}
    pictures = {
        "Accuracy over steps": ("accuracy.png", draw_accuracy),
        "Final accuracy against staleness": ("staleness.png", draw_staleness),
        "Scale imbalance over steps": ("imbalance.png", draw_imbalance),
    }
    for name, draw in pictures.values():
        draw(config, drawn, directory / name)
    return {what: name for what, (name, _) in pictures.items()}


def draw_accuracy(config: LabConfig, results: Sequence[Result], path: Path) -> None:
    """Accuracy over steps, a panel per age: the mean over the seeds, and a band from the lowest to the highest."""

    def panel(axes: Any, looks: Looks, runs: Sequence[Result]) -> None:
        axes.axhline(np.mean([accuracies(run)[0] for run in runs]), color=GREY, linewidth=1.2, linestyle=":")
        for label, alike in grouped(runs, lambda cell: cell.label).items():
            _band(axes, _steps(alike), np.array([accuracies(run) for run in alike]), np.nanmean, looks, label)
        axes.set_ylim(bottom=0)

    caption = "Mean over seeds; band: lowest to highest seed; dotted: base policy"
    _panels(config, results, path, "Accuracy on held-out prompts", caption, panel)


def draw_imbalance(config: LabConfig, results: Sequence[Result], path: Path) -> None:
    """Scale imbalance over steps, a panel per age, on a logarithmic axis, with the collapse of every run marked."""

    def panel(axes: Any, looks: Looks, runs: Sequence[Result]) -> None:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.axhline(1, color=GREY, linewidth=1.2, linestyle=":")
        for label, alike in grouped(runs, lambda cell: cell.label).items():
            steps = _steps(alike)
            values = np.array([[row.get(names.SCALE_IMBALANCE, np.nan) for row in run.rows] for run in alike])
            values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            _band(axes, steps, values, lambda v, axis: np.exp(np.nanmean(np.log(v), axis=axis)), looks, label)
            for run, of_run in zip(alike, values, strict=True):
                _mark_collapse(axes, collapsed_at(run), steps, of_run, looks[label]["color"])

    caption = "Geometric mean over seeds; band: lowest to highest seed; ✗: a run collapses here; dotted: balance"
    _panels(config, results, path, "Scale imbalance: NLL of the negatives / NLL of the positives", caption, panel)


def draw_staleness(config: LabConfig, results: Sequence[Result], path: Path) -> None:
    """Final accuracy against staleness, a panel per view, with 95% bootstrap intervals over the seeds."""
    summaries = summarize(results)
    views = views_of(summaries)
    ages = sorted({summary.staleness for summary in summaries})
    looks = _looks(config)
    caption = "Mean and 95% bootstrap interval over seeds; dotted: base policy"
    figure = _figure(5.0, "Final accuracy against staleness", caption)
    for axes, view in zip(figure.subplots(1, len(views), sharey=True, squeeze=False)[0], views, strict=True):
        chosen = [summary for summary in summaries if summary.view == view]
        style_panel(axes, VIEWS[view] if len(views) == 1 else f"view {view!r}")
        axes.axhline(np.mean([summary.base for summary in chosen]), color=GREY, linewidth=1.2, linestyle=":")
        for place, (label, look) in enumerate(looks.items()):
            # Side by side, for intervals on top of each other cannot be read.
            offset = (place - (len(looks) - 1) / 2) * 0.5 / len(looks)
            if alike := sorted((s for s in chosen if s.label == label), key=lambda s: s.staleness):
                final = np.array([s.final for s in alike])
                low, high = np.array([s.final_interval for s in alike]).T
                # A quantile may differ from the mean of equal values by rounding.
                errors = np.maximum([final - low, high - final], 0)
                x = [ages.index(s.staleness) + offset for s in alike]
                axes.errorbar(x, final, yerr=errors, linewidth=1.6, markersize=7, capsize=3, **look)
        axes.set_xticks(range(len(ages)), [age_name(config, age) for age in ages])
        axes.set_xlim(-0.5, len(ages) - 0.5)
        axes.set_ylim(bottom=0)
    _save(figure, looks, {summary.label for summary in summaries}, path)


def _panels(config: LabConfig, results: Sequence[Result], path: Path, title: str, caption: str, panel: Panel) -> None:
    """A picture with a panel for every view and age that has runs; a view begins a row."""
    panels = grouped(results, lambda cell: (cell.view, cell.staleness))
    ages = {view: sorted(age for of, age in panels if of == view) for view, _ in panels}
    columns = min(max(len(found) for found in ages.values()), MOST_COLUMNS)
    rows = [(view, found[i : i + columns]) for view, found in ages.items() for i in range(0, len(found), columns)]
    looks = _looks(config)
    figure = _figure(1.3 + 3.1 * len(rows), title, caption)
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for row, (view, found) in zip(grid, rows, strict=True):
        for axes, age in zip(row, found, strict=False):
            name = age_name(config, age)
            style_panel(axes, name if len(ages) == 1 else f"{view}, {name}")
            panel(axes, looks, panels[view, age])
            if not has_data(axes, points=2):
                axes.text(0.5, 0.6, "not recorded", transform=axes.transAxes, ha="center", color=GREY)
            axes.set_xlabel("step")
            axes.set_xlim(0, config.run.steps * 1.02)
            axes.tick_params(labelbottom=True)
        for axes in row[len(found) :]:
            axes.set_visible(False)
    _save(figure, looks, {result.cell.label for result in results}, path)


def _figure(height: float, title: str, caption: str) -> Any:
    figure = new_figure(height, f"{title}\n", title_size=14, dpi=100, pad=0.06)
    # In the empty second line of the title, so that the layout keeps room for it.
    figure.text(0.01, 1 - 0.4 / height, caption, fontsize=10.5, color=GREY, va="top", ha="left")
    return figure


def _looks(config: LabConfig) -> Looks:
    """Colour, marker and line of every objective by its label: the same in all pictures."""
    return {
        label: {
            "color": COLORS[place % len(COLORS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": STYLES[place // len(COLORS) % len(STYLES)],
        }
        for place, label in enumerate(config.lab.labels)
    }


def _steps(runs: Sequence[Result]) -> list[int]:
    """The steps of the evaluations, the same of every run of a grid."""
    return [int(row["step"]) for row in runs[0].rows]


def _band(axes: Any, steps: Sequence[int], values: Series, mean: Any, looks: Looks, label: str) -> None:
    """The mean over runs, and a band from the lowest to the highest; `values` [runs, steps]."""
    known = np.isfinite(values).any(axis=0)
    x, values, look = np.asarray(steps)[known], values[:, known], looks[label]
    if not len(x):
        return
    axes.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=look["color"], alpha=0.15, lw=0)
    # Markers tell the lines apart without their colours; each begins at another place, so that lines on top of each
    # other are all seen.
    every = max(len(x) // 5, 1)
    marks = slice(list(looks).index(label) * every // len(looks), None, every)
    axes.plot(x, mean(values, axis=0), linewidth=1.8, markersize=5.5, markevery=marks, **look)


def _mark_collapse(axes: Any, step: int | None, steps: Sequence[int], values: Series, color: str) -> None:
    """A cross on a run's own curve; at the lower edge where the curve has no value."""
    if step is None:
        return
    value = values[list(steps).index(step)]
    look = {"color": color, "marker": "x", "markersize": 9, "markeredgewidth": 2.4, "linestyle": "", "zorder": 5}
    if not np.isfinite(value):
        value, look["transform"] = 0.02, axes.get_xaxis_transform()
    axes.plot([step], [value], **look)


def _save(figure: Any, looks: Looks, present: set[str], path: Path) -> None:
    labels = [label for label in looks if label in present]
    handles = [Line2D([], [], linewidth=1.8, markersize=7, **looks[label]) for label in labels]
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7), frameon=False)
    for text in legend.get_texts():
        text.set(fontsize=11, parse_math=False)
    figure.savefig(path, format="png")
