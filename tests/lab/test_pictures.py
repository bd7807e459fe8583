"""The pictures of a grid, drawn and opened again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from driftproof.lab.experiment import Result
from driftproof.lab.grid import planned_cells
from driftproof.lab.pictures import draw_imbalance, draw_pictures
from driftproof.lab.settings import LabConfig
from tests.lab.grids import make_config, make_result, make_results

pytestmark = pytest.mark.filterwarnings("error")


def pixels(path: Path) -> NDArray[np.float64]:
    from matplotlib.image import imread

    return np.asarray(imread(path))[..., :3]


def drawn(config: LabConfig, results: list[Result], directory: Path) -> dict[str, NDArray[np.float64]]:
    """All three pictures; each must have something on it."""
    names = sorted(draw_pictures(config, results, directory).values())
    assert names == ["accuracy.png", "imbalance.png", "staleness.png"]
    found = {name: pixels(directory / name) for name in names}
    for picture in found.values():
        assert picture.shape[1] == 1200
        assert (picture.min(axis=2) < 0.9).mean() > 0.005
    return found


@pytest.mark.parametrize("schedule", ["lag", "periodic"])
def test_a_whole_grid(schedule: str, tmp_path: Path) -> None:
    names = ["naive", "gpg", "spo", "asympo", "grpo", "dppo-tv", "drpo", "cispo"]
    config = make_config(*names, staleness=[0, 1, 4, 16, 64], schedule=schedule)
    drawn(config, make_results(config), tmp_path)


@pytest.mark.slow
def test_several_views(tmp_path: Path) -> None:
    views = {"views": ["given", "tuned", "matched"], "learning_rates": [1e-3]}
    one = drawn(make_config("naive"), make_results(make_config("naive")), tmp_path)
    three = drawn(make_config("naive", **views), make_results(make_config("naive", **views)), tmp_path)
    assert three["accuracy.png"].shape[0] > 2 * one["accuracy.png"].shape[0]


def test_a_part_of_a_grid(tmp_path: Path) -> None:
    config = make_config("naive", "asympo", "grpo", staleness=[0, 4, 16])
    drawn(config, make_results(config, keep=lambda cell: (cell.seed + cell.staleness) % 5 == 0), tmp_path)


@pytest.mark.parametrize("accuracies", [[0.3], [0.3, 0.5], [0.3, math.nan, math.nan], [0.3, 0.6, 0.0]])
def test_one_run(accuracies: list[float], tmp_path: Path) -> None:
    config = make_config("naive", staleness=[16], seeds=[0])
    drawn(config, [make_result(planned_cells(config)[0], accuracies)], tmp_path)


@pytest.mark.parametrize("imbalance", [[], [0.0, -1.0], [math.nan, math.inf], [1e-30, 1e30]])
def test_metrics_that_cannot_be_drawn(imbalance: list[float], tmp_path: Path) -> None:
    config = make_config("naive", "asympo", staleness=[16], seeds=[0])
    naive, asympo = planned_cells(config)
    metrics = {"health__scale_imbalance": imbalance} if imbalance else {}
    results = [make_result(naive, [0.3, 0.6, 0.1], **metrics), make_result(asympo, [0.3, 0.4, 0.5])]
    drawn(config, results, tmp_path)


def test_collapses_are_marked(tmp_path: Path) -> None:
    config = make_config("naive", staleness=[16], seeds=[0])
    [cell] = planned_cells(config)
    steady, collapsed = ([0.3, 0.5, 0.6, 0.6], [0.3, 0.5, 0.1, 0.1])
    pictures = []
    for accuracies in (steady, collapsed):
        result = make_result(cell, accuracies, health__scale_imbalance=[1.0, 2.0, 3.0])
        draw_imbalance(config, [result], tmp_path / "imbalance.png")
        pictures.append(pixels(tmp_path / "imbalance.png"))
    assert 20 < (pictures[0] != pictures[1]).any(axis=2).sum() < 2000


@pytest.mark.parametrize("label", ["$x", "a_{b}$\\frac$", "%s", "{}"])
def test_any_label(label: str, tmp_path: Path) -> None:
    config = make_config(objectives=[{"name": "naive", "label": label}], staleness=[0], seeds=[0])
    drawn(config, make_results(config), tmp_path)


def test_no_runs_no_pictures(tmp_path: Path) -> None:
    config = make_config("naive", views=["tuned"], learning_rates=[1e-3])
    assert draw_pictures(config, [], tmp_path) == {}
    assert draw_pictures(config, make_results(config, keep=lambda cell: cell.view == "tuning"), tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_same_runs_give_the_same_pictures(tmp_path: Path) -> None:
    config = make_config("naive", "asympo")
    first = drawn(config, make_results(config), tmp_path)
    again = drawn(config, make_results(config), tmp_path)
    assert all(np.array_equal(first[name], again[name]) for name in first)
