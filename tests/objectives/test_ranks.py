"""A step shared by two real processes has the loss, the gradient and the metrics of the whole step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .formulas import CASES, Case
from .ranks import Outcome
from .steps import Result, a_step, assert_same, evaluate

REFUSALS = {
    "dealt": {"m2po": "m2po needs the whole step at once"},
    "cut": {"m2po": "m2po needs the whole step at once", "ppo": "it cannot be split over ranks"},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    """Of all cases; one pair of processes serves them all."""
    directory = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.objectives.ranks", str(rank), directory / "store", directory / "result"],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=300)
            assert process.returncode == 0, stderr
    finally:
        for process in processes:
            process.kill()
    found: dict[str, dict[str, Outcome]] = torch.load(directory / "result")
    return found


@pytest.mark.parametrize("way", ["dealt", "cut"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_two_ranks_add_up_to_the_step(outcomes: dict[str, dict[str, Outcome]], case: Case, way: str) -> None:
    outcome = outcomes[case.label][way]
    refusal = REFUSALS[way].get(case.objective.name)
    if refusal:
        assert isinstance(outcome, str)
        assert refusal in outcome
    else:
        assert not isinstance(outcome, str), outcome
        assert_same(Result(*outcome), evaluate(a_step(), case.objective))
