"""Settings of the lab: a recipe of a run, and the grid over it in `[lab]`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, MinLen
from pydantic import Field, model_validator

from driftproof.config import Config, NamedSection
from driftproof.types import Baseline

Seed = Annotated[int, Ge(0)]
View = Literal["given", "tuned", "matched"]


class LabObjective(NamedSection):
    """An objective of a grid: its `name` and fields, and what the lab does with it."""

    label: str = ""
    """Name in tables and pictures; the objective's own if not given."""
    baseline: Baseline = "mean"
    """Baseline of its advantages."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate in the view "given"; the learner's if not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """A grid of objectives x staleness x learning rates x seeds."""

    directory: Path | None = None
    """Directory of the results, `labs/NAME` if not given; a run whose result is there is not run again."""
    processes: Annotated[int, Ge(0)] = 0
    """Runs at a time, one thread each; 0: one for each core."""
    objectives: Annotated[tuple[LabObjective, ...], MinLen(1)]
    """Objectives of the grid, each with a label of its own."""
    staleness: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 4, 16, 64)
    """Exact lag, or the period, in updates; without meaning under a replay."""
    schedule: Literal["lag", "periodic", "replay"] = "lag"
    """Rule for the age of the data: an exact lag, periodic copies of the weights, or the ages of another run."""
    replay: Path | None = None
    """Run directory whose ages are replayed."""
    seeds: Annotated[tuple[Seed, ...], MinLen(1)] = (0, 1, 2, 3, 4)
    views: Annotated[tuple[View, ...], MinLen(1)] = ("given",)
    """Learning rates: `given` takes an objective's `lr`, else the learner's; `tuned` its own best of `learning_rates`
    at staleness 0; `matched` the learner's for all, with every gradient scaled to one norm."""
    learning_rates: tuple[Annotated[float, Gt(0)], ...] = ()
    """Learning rates of the sweep, each run with the `tuning_seeds`."""
    tuning_seeds: tuple[Seed, ...] = (1000, 1001)
    matched_grad_norm: Annotated[float, Gt(0)] = 1e-3
    """Norm of every gradient in the view "matched", so small that clipping to it always acts."""
    evaluate_every: Annotated[int, Ge(1)] = 10
    """Steps from one measurement of accuracy to the next."""

    def __post_init__(self) -> None:
        if (self.schedule == "replay") != (self.replay is not None):
            raise ValueError("schedule 'replay' and a run directory in `replay` belong together")
        if "tuned" in self.views and not (self.learning_rates and self.tuning_seeds):
            raise ValueError("the view 'tuned' needs learning_rates and tuning_seeds")
        twice = sorted(label for label in self.labels if self.labels.count(label) > 1)
        if twice:
            raise ValueError(f"objectives share the label {twice[0]!r}; give each a `label` of its own")

    @property
    def labels(self) -> list[str]:
        return [objective.label or objective.name for objective in self.objectives]


class LabConfig(Config):
    """A recipe of the lab: that of a run, and the grid over it."""

    lab: LabSettings

    @model_validator(mode="after")
    def _live(self) -> Self:
        if self.rollouts.recorded_share is not None:
            raise ValueError("the lab writes its own responses, all of them live; leave out rollouts.recorded_share")
        return self
