"""Runs of the lab on the tiny model: ages are what was asked for, and accuracy is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftproof.lab import experiment
from driftproof.lab.experiment import SIGNALS, Result, exact_accuracy
from driftproof.lab.grid import Cell
from driftproof.lab.settings import LabConfig, LabObjective
from driftproof.runtime.build import make_learner, make_task
from driftproof.tasks.codec import Codec
from driftproof.tiny.supervised import score_answers


def make_config(model: Path, **lab: Any) -> LabConfig:
    return LabConfig.model_validate(
        {
            "model": {"path": model},
            "run": {"steps": 6},
            "sampling": {"max_tokens": 5},
            "rollouts": {"group_size": 4},
            "learner": {"groups_per_step": 2, "lr": 1e-3},
            "evaluation": {"prompts": 8},
            "lab": {"objectives": [{"name": "asympo"}, {"name": "grpo"}], "evaluate_every": 1} | lab,
        }
    )


def run(config: LabConfig, staleness: int, objective: str = "asympo", seed: int = 0, **fields: float) -> Result:
    chosen = LabObjective(name=objective, **fields)
    cell = Cell(view="given", objective=chosen, staleness=staleness, lr=1e-3, seed=seed)
    return experiment.run(config, cell)


@pytest.mark.parametrize(
    ("schedule", "staleness", "ages"),
    [
        ("lag", 0, [0, 0, 0, 0, 0, 0]),
        ("lag", 2, [0, 1, 2, 2, 2, 2]),
        ("lag", 64, [0, 1, 2, 3, 4, 5]),
        ("periodic", 3, [0, 1, 2, 0, 1, 2]),
    ],
)
def test_the_data_has_the_age_that_was_asked_for(schedule: str, staleness: int, ages: list[int], tiny_model_dir: Path):
    history = run(make_config(tiny_model_dir, schedule=schedule), staleness)
    assert [row["age_mean"] for row in history.rows[1:]] == ages
    assert [row["step"] for row in history.rows] == list(range(7))
    assert set(history.signals) == set(SIGNALS)
    assert history.signals["grad_norm"] == [row["grad_norm"] for row in history.rows[1:]]


def test_stale_data_is_written_by_old_weights(tiny_model_dir: Path):
    """With behavior log-probs it shows: the ratio is 1 as long as the sampler has the learner's weights."""
    config = make_config(tiny_model_dir)
    # The entropy bonus moves weights that random answers, all wrong, would not.
    fresh, stale = (run(config, age, "grpo", entropy_bonus=1.0) for age in (0, 2))
    assert all(row["health/behavior_kl"] < 1e-9 for row in fresh.rows[1:])
    assert stale.rows[1]["health/behavior_kl"] < 1e-9
    assert all(row["health/behavior_kl"] > 1e-7 for row in stale.rows[2:])


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tiny_model_dir: Path):
    config = make_config(tiny_model_dir)
    rows = run(config, 2).rows
    assert run(config, 2).rows == rows
    assert run(config, 2, seed=1).rows != rows


def test_accuracy_is_the_probability_of_exactly_the_answer(tiny_model_dir: Path):
    config = make_config(tiny_model_dir)
    prompts = make_task(config).heldout[:16]
    learner = make_learner(config)
    accuracy = exact_accuracy(prompts, Codec(tiny_model_dir))(learner)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    expected = score_answers(model, AutoTokenizer.from_pretrained(tiny_model_dir), prompts).probability.double().mean()
    assert accuracy == pytest.approx(expected.item(), rel=1e-4)
    assert torch.isfinite(expected)
