"""The runs of a grid, their names and their configurations."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.lab.grid import Cell, best_rates, cell_config, grid_cells, planned_cells, tuning_cells
from driftproof.lab.settings import LabObjective
from tests.lab.grids import make_config

NAME = st.text(st.sampled_from("ab/%_-2F "), min_size=1, max_size=4)
CELL = st.builds(
    Cell,
    view=st.sampled_from(["tuning", "given", "tuned", "matched"]),
    objective=st.builds(LabObjective, name=NAME, label=st.just("") | NAME),
    staleness=st.integers(0, 2),
    lr=st.sampled_from([1e-4, 1.0000001e-4, 1e-5, 0.1]),
    seed=st.integers(0, 2),
)


@given(st.lists(CELL, max_size=30))
def test_keys_are_unique_and_fit_for_a_file_name(cells: list[Cell]) -> None:
    identities = {(cell.view, cell.label, cell.staleness, cell.lr, cell.seed) for cell in cells}
    assert len({cell.key for cell in cells}) == len(identities)
    assert all(Path(cell.key).name == cell.key for cell in cells)


def test_the_runs_of_a_grid_come_a_seed_at_a_time() -> None:
    config = make_config("naive", "asympo", views=["given", "tuned"], learning_rates=[1e-3, 1e-2], tuning_seeds=[9])
    rates = {"naive": 1e-3, "asympo": 1e-2}
    assert [cell.key for cell in tuning_cells(config)] == [
        f"tuning-{label}-age0-lr{lr}-seed9" for lr in (1e-3, 1e-2) for label in ("naive", "asympo")
    ]
    keys = [cell.key for cell in grid_cells(config, rates)]
    assert len(keys) == len(set(keys)) == 2 * 2 * 2 * 2
    assert keys[0] == "given-naive-age0-lr1e-06-seed0"
    assert keys[7] == "tuned-asympo-age16-lr0.01-seed0"
    assert [cell.key for cell in planned_cells(config, rates)] == [c.key for c in tuning_cells(config)] + keys
    assert len(planned_cells(config)) == 4 + 16


def test_nothing_is_run_twice() -> None:
    twice = {"seeds": [0, 0], "staleness": [4, 4], "learning_rates": [1e-3, 1e-3], "tuning_seeds": [9, 9]}
    config = make_config("naive", views=["given", "given", "tuned"], **twice)
    assert len(planned_cells(config)) == 1 + 2


def test_a_replay_has_no_other_ages() -> None:
    config = make_config("naive", staleness=[0, 4, 16], schedule="replay", replay="runs/some", seeds=[0])
    assert [cell.staleness for cell in grid_cells(config, {})] == [0]


def test_the_configuration_of_a_run() -> None:
    objectives = [{"name": "grpo", "baseline": "mean-std", "lr": 3e-4, "clip_high": 0.3}]
    config = make_config(objectives=objectives, views=["given", "matched"], seeds=[7], matched_grad_norm=1e-4)
    given, matched = (cell_config(config, cell) for cell in grid_cells(config, {})[::2])
    assert given.objective.name == "grpo"
    assert given.objective.fields == {"clip_high": 0.3}
    assert given.advantages.baseline == "mean-std"
    assert (given.run.seed, given.learner.lr, given.learner.max_grad_norm) == (7, 3e-4, 1.0)
    assert (matched.run.seed, matched.learner.lr, matched.learner.max_grad_norm) == (7, config.learner.lr, 1e-4)
    assert not hasattr(given, "lab")


def _tuning(label: str, lr: float, seed: int) -> Cell:
    return Cell(view="tuning", objective=LabObjective(name=label), staleness=0, lr=lr, seed=seed)


def test_the_best_rate_is_that_of_the_best_mean() -> None:
    cells = [_tuning(label, lr, seed) for label in ("a", "b") for lr in (1e-3, 1e-4) for seed in (0, 1)]
    assert best_rates(cells, [0.9, 0.1, 0.6, 0.6, 0.5, 0.5, 0.4, 0.5]) == {"a": 1e-4, "b": 1e-3}


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rate_that_broke_the_policy_is_not_the_best(broken: int) -> None:
    accuracies = [0.3, 0.3]
    accuracies[broken] = math.nan
    cells = [_tuning("a", 1e-3, 0), _tuning("a", 1e-4, 0)]
    assert best_rates(cells, accuracies) == {"a": cells[1 - broken].lr}


def test_the_smaller_rate_where_they_tie() -> None:
    assert best_rates([_tuning("a", lr, 0) for lr in (1e-3, 1e-4, 1e-2)], [0.5, 0.5, 0.5]) == {"a": 1e-4}
