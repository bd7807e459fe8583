"""Files that a grid leaves beside its runs: `results.parquet` for other programs, `report.md` and the pictures.

Guarantees: they are made of any part of a grid, without running anything, and the same runs give the same files; in the
table a run's rows stand together, in the order of steps, and a metric that a row lacks is null.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from driftproof.errors import ConfigError
from driftproof.lab.pictures import draw_pictures
from driftproof.lab.runner import Result
from driftproof.lab.settings import LabConfig
from driftproof.lab.summary import collapsed_at, missing_cells, summarize
from driftproof.lab.tables import markdown
from driftproof.run import written_whole


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
