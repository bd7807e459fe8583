"""The report of a grid: tables for terminals, `report.md` with pictures, and `results.parquet` for other programs.

Guarantees: made of any part of a grid, without running anything; the same results give the same files and text; labels
cannot disturb a terminal or a table. In the Parquet file a run's rows stand together, in the order of steps, and a
metric that a row lacks is null.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Group
from rich.text import Text

from driftproof.errors import ConfigError
from driftproof.lab.experiment import Result
from driftproof.lab.grid import VIEWS, Cell, View, age_name, planned_cells
from driftproof.lab.pictures import draw_pictures
from driftproof.lab.settings import LabConfig
from driftproof.lab.summary import Summary, collapsed_at, missing_cells, summarize, views_of
from driftproof.report.tables import plain_table
from driftproof.run import written_whole
from driftproof.text import printable
from driftproof.weights.hub import named

HOW_TO_READ = (
    "Accuracies are means over the seeds after the last step, in brackets their 95% bootstrap interval over the seeds; "
    "collapse rates have 95% Wilson intervals. ✗k/n: k of n runs have collapsed.\n\n"
    "A run has collapsed at step s if from s on its accuracy, averaged over 20 steps, is under half of the best such "
    "average that it had before, and under the base policy's. A run that dips and comes back has not collapsed."
)


def check_store() -> None:
    """Refuse to start what could not be stored: pyarrow is an extra."""
    if find_spec("pyarrow") is None:
        raise ConfigError("results.parquet needs pyarrow: pip install 'driftproof[lab]'")


def write_report(config: LabConfig, results: Sequence[Result], directory: Path) -> list[Path]:
    """Write all of it; the files that were written."""
    write_results(config, results, directory / "results.parquet")
    pictures = draw_pictures(config, results, directory)
    text = markdown(config, summarize(results), missing_cells(config, results), pictures)
    (directory / "report.md").write_text(text)
    return [directory / name for name in ("results.parquet", "report.md", *pictures.values())]


def write_results(config: LabConfig, results: Sequence[Result], path: Path) -> None:
    """Write one row per run and evaluation.

    The columns of a run are `view`, `label`, `objective`, `fields` (of the objective, JSON), `baseline`, `staleness`,
    `schedule`, `lr`, `seed`, `seconds` and `collapse_step` (null: no collapse); those of an evaluation `step`, `final`,
    `accuracy` and every metric of a step (docs/runs.md) as the mean since the evaluation before, float64. The metric
    `lr` is the column `lr_mean`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = sorted({name for result in results for row in result.rows for name in row} - {"step", "accuracy"})
    columns = {name: "lr_mean" if name == "lr" else name for name in metrics}
    text, count, number = pa.string(), pa.int64(), pa.float64()
    types = dict.fromkeys(("view", "label", "objective", "fields", "baseline"), text)
    types |= {"staleness": count, "schedule": text, "lr": number, "seed": count, "seconds": number}
    types |= {"collapse_step": count, "step": count, "final": pa.bool_(), "accuracy": number}
    rows = []
    for result in results:
        cell, objective = result.cell, result.cell.objective
        of_run = {
            "view": cell.view,
            "label": cell.label,
            "objective": objective.name,
            "fields": json.dumps(objective.fields, sort_keys=True),
            "baseline": objective.baseline,
            "staleness": cell.staleness,
            "schedule": config.lab.schedule,
            "lr": cell.lr,
            "seed": cell.seed,
            "seconds": result.seconds,
            "collapse_step": collapsed_at(result),
        }
        for row in result.rows:
            measured = {"step": int(row["step"]), "final": row is result.rows[-1], "accuracy": row["accuracy"]}
            # A row that lacks a metric has null there.
            rows.append(of_run | measured | {columns[name]: row[name] for name in columns if name in row})
    schema = pa.schema([*types.items(), *((column, number) for column in columns.values())])
    with written_whole(path, durable=False) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)


def result_table(config: LabConfig, view: View, summaries: Sequence[Summary]) -> Group:
    """Final accuracies of one view: a row per objective, a column per age, or per learning rate of the sweep."""
    header, *rows = result_rows(config, view, summaries)
    table = plain_table(*header, justify="left")
    for label, *cells in rows:
        table.add_row(Text(label), *(Text(cell, style="red" if "✗" in cell else "") for cell in cells))
    # A title of the table itself would be broken to its width.
    return Group(Text(VIEWS[view], style="bold"), table)


def markdown(
    config: LabConfig, summaries: Sequence[Summary], missing: Sequence[Cell], pictures: Mapping[str, str]
) -> str:
    """The report; `pictures` are file names by what they show."""
    lines = [f"# {escaped(config.run.name)}", "", setting_text(config)]
    for line in missing_lines(config, missing):
        lines += ["", line]
    for view in views_of(summaries):
        chosen = [summary for summary in summaries if summary.view == view]
        lines += ["", f"## {VIEWS[view]}", "", *markdown_table(result_rows(config, view, chosen))]
        lines += ["", *markdown_table(detail_rows(config, chosen))]
    lines += ["", "## How to read this", "", HOW_TO_READ]
    for what, name in pictures.items():
        lines += ["", f"## {what}", "", f"![{what}]({name})"]
    return "\n".join(lines) + "\n"


def missing_lines(config: LabConfig, missing: Sequence[Cell]) -> list[str]:
    """The runs that a grid lacks, a line per view; [] when nothing is missing."""
    planned = [cell.view for cell in planned_cells(config)]
    lacking = [cell.view for cell in missing]
    return [
        f"Missing: {lacking.count(view)} of {planned.count(view)} runs of the view {view!r}."
        for view in dict.fromkeys(planned)
        if view in lacking
    ]


def result_text(summary: Summary, seeds: int) -> str:
    """A cell such as "0.61 [0.58, 0.64]", "0.08 [0.05, 0.10] ✗3/5" or "0.61 (1 of 5 seeds)"."""
    low, high = summary.final_interval
    parts = [f"{summary.final:.2f}"]
    if summary.runs > 1:
        parts.append(f"[{low:.2f}, {high:.2f}]")
    if summary.collapsed:
        parts.append(f"✗{summary.collapsed}/{summary.runs}")
    if summary.runs < seeds:
        parts.append(f"({summary.runs} of {seeds} seeds)")
    return " ".join(parts)


def result_rows(config: LabConfig, view: View, summaries: Sequence[Summary]) -> list[list[str]]:
    """Header and rows of final accuracies; "-" where there is no run yet."""
    tuning = view == "tuning"
    seeds = len(set(config.lab.tuning_seeds if tuning else config.lab.seeds))
    texts = {(s.label, s.lr if tuning else s.staleness): result_text(s, seeds) for s in summaries}
    keys = sorted({key for _, key in texts})
    names = [f"lr {key:g}" if tuning else age_name(config, int(key)) for key in keys]
    rows = [[printable(label), *(texts.get((label, key), "-") for key in keys)] for label in config.lab.labels]
    return [["objective", *names], *rows]


def detail_rows(config: LabConfig, summaries: Sequence[Summary]) -> list[list[str]]:
    """Header and a row per objective, age and rate, with intervals and collapses."""
    header = ["objective", "learning rate", "staleness", "runs", "base", "final", "best", "collapsed", "median step"]
    order = config.lab.labels.index
    rows = []
    for summary in sorted(summaries, key=lambda s: (order(s.label), s.staleness, s.lr)):
        (low, high), (rare, often) = summary.final_interval, summary.collapse_interval
        step = summary.median_collapse_step
        run = [printable(summary.label), f"{summary.lr:g}", age_name(config, summary.staleness), str(summary.runs)]
        accuracy = [f"{summary.base:.3f}", f"{summary.final:.3f} [{low:.3f}, {high:.3f}]", f"{summary.best:.3f}"]
        collapsed = f"{summary.collapsed}/{summary.runs} [{rare:.2f}, {often:.2f}]"
        rows.append([*run, *accuracy, collapsed, "" if step is None else f"{step:g}"])
    return [header, *rows]


def setting_text(config: LabConfig) -> str:
    """The setting of a grid, in a sentence."""
    seeds = ", ".join(map(str, dict.fromkeys(config.lab.seeds)))
    fields = "".join(f", {name} {value}" for name, value in config.task.fields.items())
    return escaped(
        f"Model {Path(named(config.model.path)).name}, task {config.task.name}{fields}; {config.run.steps} steps of "
        f"{config.learner.groups_per_step} groups of {config.rollouts.group_size} responses; accuracy every "
        f"{config.lab.evaluate_every} steps on {config.evaluation.prompts} held-out prompts; seeds {seeds}."
    )


def markdown_table(rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose first row is its header; cells show as they are."""
    header, *body = [[escaped(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_<>|#" else c for c in printable(text))
