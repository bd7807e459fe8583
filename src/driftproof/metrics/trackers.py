"""Trackers, which get a run's metrics besides the ledger: `metrics.jsonl`, TensorBoard, Weights & Biases, trackio.

`metrics.jsonl` holds one object a step, each step once, also after a resume.
"""

import json
import math
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from driftproof.errors import ConfigError
from driftproof.metrics.settings import TrackingSettings
from driftproof.run import RunDirectory, written_whole


class JsonLines:
    """`metrics.jsonl`, a line a step, flushed at once."""

    def __init__(self, path: Path, history: Iterable[dict[str, Any]]) -> None:
        """`history`: the steps that stand; what the file had beyond them is dropped."""
        with written_whole(path) as partial, partial.open("w") as file:
            file.writelines(_line(metrics) for metrics in history)
        self._file = path.open("a", buffering=1)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self._file.write(_line({"step": step, **metrics}))

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard events, every tenth step's metrics (a scalar costs tens of microseconds)."""

    every = 10

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resumed_step + 1 if resumed_step else None)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        if step == 1 or step % self.every == 0:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLike:
    """Weights & Biases, or trackio, which has the same calls."""

    def __init__(self, package: str, project: str, run_name: str) -> None:
        self._module = import_module(package)
        self._module.init(project=project, name=run_name)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self._module.log(metrics, step=step)

    def close(self) -> None:
        self._module.finish()


Tracker = JsonLines | TensorBoard | WandbLike


def check_trackers(settings: TrackingSettings) -> None:
    """Refuse a tracker whose package is missing, before the run."""
    for package, _ in _hosted(settings):
        if find_spec(package) is None:
            raise ConfigError(f"tracking.{package} needs its package: pip install 'driftproof[{package}]'")


def open_trackers(directory: Path, history: list[dict[str, Any]], settings: TrackingSettings) -> list[Tracker]:
    """The trackers of a run directory; `history` are the steps already done."""
    run = RunDirectory(path=directory)
    trackers: list[Tracker] = [JsonLines(run.metrics, history)]
    if settings.tensorboard:
        trackers.append(TensorBoard(run.tensorboard, len(history)))
    trackers += [WandbLike(package, project, directory.name) for package, project in _hosted(settings)]
    return trackers


def _hosted(settings: TrackingSettings) -> list[tuple[str, str]]:
    """Packages and projects of the trackers that are asked for beside those of the run directory."""
    projects = {"wandb": settings.wandb, "trackio": settings.trackio}
    return [(package, project) for package, project in projects.items() if project]


def _line(metrics: dict[str, Any]) -> str:
    lost = {name: None for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(metrics | lost) + "\n"
