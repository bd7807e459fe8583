"""The runs of a grid, and the configuration of each.

Guarantees: a run is known by what determines it; two recipes that share a run have it under the same key.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from driftproof.config import Config, ObjectiveSection
from driftproof.lab.settings import LabConfig, LabObjective
from driftproof.learner.settings import AdvantagesSettings
from driftproof.metrics.collapse import number_or_zero

View = Literal["tuning", "given", "tuned", "matched"]
VIEWS: Mapping[View, str] = {
    "tuning": "Sweep of the learning rates at staleness 0",
    "given": "Every objective at its given learning rate",
    "tuned": "Every objective at the best learning rate of its own sweep",
    "matched": "Every gradient scaled to the same norm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a grid."""

    view: View
    """`tuning` runs choose the learning rates of `tuned` ones."""
    objective: LabObjective
    staleness: int
    lr: float
    seed: int

    @property
    def label(self) -> str:
        return self.objective.label or self.objective.name

    @property
    def key(self) -> str:
        """Name that is unique in its grid and fit for a file."""
        label = self.label.replace("%", "%25").replace("/", "%2F")
        return f"{self.view}-{label}-age{self.staleness}-lr{self.lr!r}-seed{self.seed}"


def age_name(config: LabConfig, staleness: int) -> str:
    """The name of an age: "age 16", or its equivalent under another schedule."""
    if config.lab.schedule == "replay":
        return "replayed ages"
    if config.lab.schedule == "periodic" and staleness:
        return f"published every {staleness}"
    return f"age {staleness}"


def tuning_cells(config: LabConfig) -> list[Cell]:
    """The sweep at staleness 0 from which each objective takes its learning rate; [] where nothing is tuned."""
    if "tuned" not in config.lab.views:
        return []
    return _unique(
        Cell(view="tuning", objective=objective, staleness=0, lr=lr, seed=seed)
        for seed in config.lab.tuning_seeds
        for lr in config.lab.learning_rates
        for objective in config.lab.objectives
    )


def grid_cells(config: LabConfig, tuned: Mapping[str, float]) -> list[Cell]:
    """The runs of the grid, a seed at a time; `tuned` has the learning rate of each objective by its label."""
    # A replay has ages of its own.
    ages = [0] if config.lab.replay is not None else config.lab.staleness
    return _unique(
        Cell(view=view, objective=objective, staleness=staleness, lr=_lr(config, view, objective, tuned), seed=seed)
        for seed in config.lab.seeds
        for view in config.lab.views
        for staleness in ages
        for objective in config.lab.objectives
    )


def planned_cells(config: LabConfig, tuned: Mapping[str, float] = {}) -> list[Cell]:
    """All runs, tuning runs first; a run of the view "tuned" has the learning rate 0 while its own is not known."""
    return [*tuning_cells(config), *grid_cells(config, tuned)]


def cell_config(config: LabConfig, cell: Cell) -> Config:
    """The configuration of one run: what `driftproof train` would be given."""
    learner = replace(config.learner, lr=cell.lr)
    if cell.view == "matched":
        learner = replace(learner, max_grad_norm=config.lab.matched_grad_norm)
    return Config(
        **{name: getattr(config, name) for name in Config.model_fields}
        | {
            "run": replace(config.run, seed=cell.seed),
            "objective": ObjectiveSection(name=cell.objective.name, **cell.objective.fields),
            "advantages": AdvantagesSettings(baseline=cell.objective.baseline),
            "learner": learner,
        }
    )


def best_rates(cells: Sequence[Cell], accuracies: Sequence[float]) -> dict[str, float]:
    """The learning rate of each label with the best mean accuracy over its tuning runs; of two equals the smaller."""
    found: dict[str, dict[float, list[float]]] = {}
    for cell, accuracy in zip(cells, accuracies, strict=True):
        found.setdefault(cell.label, {}).setdefault(cell.lr, []).append(number_or_zero(accuracy))
    return {label: min(rates, key=lambda lr: (-sum(rates[lr]) / len(rates[lr]), lr)) for label, rates in found.items()}


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    """The same cells, each once: a seed that a recipe names twice would narrow every interval."""
    return list({cell.key: cell for cell in cells}.values())


def _lr(config: LabConfig, view: View, objective: LabObjective, tuned: Mapping[str, float]) -> float:
    if view == "tuned":
        return tuned.get(objective.label or objective.name, 0.0)
    if view == "given" and objective.lr is not None:
        return objective.lr
    return config.learner.lr
