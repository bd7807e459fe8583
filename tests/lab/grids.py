"""Grids with results that were made up: what a table or picture is given where no run is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from driftproof.lab.experiment import Result
from driftproof.lab.grid import Cell, planned_cells
from driftproof.lab.settings import LabConfig


def make_config(*names: str, **lab: Any) -> LabConfig:
    """A grid over objectives of these names (or `objectives`); `lab` are further settings of it."""
    settings = {"staleness": [0, 16], "seeds": [0, 1], "objectives": [{"name": name} for name in names]} | lab
    return LabConfig.model_validate({"model": {"path": "models/tiny"}, "run": {"name": "made-up"}, "lab": settings})


def make_result(cell: Cell, accuracies: Sequence[float], **metrics: Sequence[float]) -> Result:
    """A run evaluated every 20 steps; `metrics` have a value for every evaluation but the first."""
    rows = [{"step": 20 * place, "accuracy": accuracy} for place, accuracy in enumerate(accuracies)]
    for name, values in metrics.items():
        for row, value in zip(rows[1:], values, strict=True):
            row[name.replace("__", "/")] = value
    return Result(cell=cell, rows=tuple(rows), seconds=1.5)


def make_results(config: LabConfig, evaluations: int = 6, keep: Callable[[Cell], bool] = bool) -> list[Result]:
    """A result for every run: all learn, but `naive` and `gpg` collapse at ages above 8."""
    # The sweep ties, and then the smallest rate is taken.
    rates = {
        objective.label or objective.name: min(config.lab.learning_rates, default=0.0)
        for objective in config.lab.objectives
    }
    return [_made_up(cell, evaluations) for cell in planned_cells(config, rates) if keep(cell)]


def _made_up(cell: Cell, evaluations: int) -> Result:
    shift = 0.01 * (cell.seed % 5) + 0.003 * len(cell.label)
    accuracies, imbalance = [], []
    for place in range(evaluations):
        learned = 0.33 + (0.3 - shift) * (1 - math.exp(-place / 5))
        late = cell.objective.name in ("naive", "gpg") and cell.staleness > 8 and place > 2 + cell.seed % 3
        accuracies.append(0.05 + shift if late else learned)
        imbalance.append(math.exp(0.1 * place + shift) * (1 + 40 * late * place))
    constant = {"lr": cell.lr, "loss": 0.0, "grad_norm": 1.0}
    metrics = {name: [value] * (evaluations - 1) for name, value in constant.items()}
    return make_result(cell, accuracies, health__scale_imbalance=imbalance[1:], **metrics)
