"""A vocab-parallel head in three real processes equals the whole head in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .problems import assert_same, differentiated
from .ranks import BUDGETS, PROBLEMS, RANKS, Results


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    directory = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.logprobs.ranks", str(rank), directory / "store", directory / "result"],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=300)
            assert process.returncode == 0, stderr
    finally:
        for process in processes:
            process.kill()
    return [torch.load(directory / f"result.{rank}") for rank in range(RANKS)]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("way", ["differentiated", "finished"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_shards_equal_the_whole_head(by_rank: list[Results], name: str, way: str, budget: int):
    expected = differentiated(PROBLEMS[name], variant="reference")
    found = [results[name, way, budget] for results in by_rank]
    parts = {key: None if expected[key] is None else torch.cat([f[key] for f in found]) for key in ("weight", "bias")}
    for of_rank in found:
        assert_same(of_rank | parts, expected, tolerance=1e-12)
