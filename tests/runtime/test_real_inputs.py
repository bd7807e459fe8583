"""The recipes on real data: GSM8K as published, and groups that real models wrote."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from driftproof.ledger.ledger import Ledger
from driftproof.tiny.model import make_tiny_model
from tests.runtime.runs import summary, train, trained_once

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real inputs, ../shared/data, is not there")


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model with random weights: it can read any text, and finds every text equally unlikely."""
    directory = tmp_path_factory.mktemp("models") / "tiny-bytes"
    make_tiny_model(directory, tokenizer="bytes", train=False)
    return directory


@pytest.mark.slow
def test_gsm8k_runs_asynchronously_with_math_verify(byte_model: Path, tmp_path: Path) -> None:
    done = train(
        ROOT / "recipes" / "gsm8k.toml", "--task.path", DATA / "gsm8k" / "train.jsonl", "--model.path", byte_model,
        "--run.directory", tmp_path / "run", "--run.steps", 3, "--sampling.max_tokens", 32,
        "--evaluation.prompts", 4,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    trained_once(tmp_path / "run", steps=3, groups_per_step=4)
    result = summary(tmp_path / "run")
    assert result["events"] == {}
    assert 0 <= result["accuracy_after"] < 0.2


@pytest.mark.parametrize("name", ["gsm8k_gpt3.jsonl", pytest.param("math_qwen.jsonl", marks=pytest.mark.slow)])
def test_recorded_groups_are_trained_without_behavior_information(name: str, byte_model: Path, tmp_path: Path) -> None:
    part = tmp_path / name
    with (DATA / "recorded" / name).open() as rows:
        part.write_text("".join(islice(rows, 6)))
    done = train(
        ROOT / "recipes" / "recorded.toml", "--rollouts.path", part, "--model.path", byte_model,
        "--run.directory", tmp_path / "run", "--run.steps", 2, "--learner.groups_per_step", 2,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "NLL of the positive responses" in done.stdout
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        groups = [record.group for record in ledger.records()]
    assert all(group.retokenized and group.behavior_logprobs is None for group in groups)
    assert {reward for group in groups for reward in group.rewards.tolist()} <= {0.0, 1.0}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["gsm8k_gpt3.jsonl", "math_qwen.jsonl"])
def test_positives_gain_on_negatives_in_groups_held_out(name: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", tokenizer="bytes")
    done = train(
        ROOT / "recipes" / "recorded.toml", "--rollouts.path", DATA / "recorded" / name,
        "--model.path", tmp_path / "model", "--run.directory", tmp_path / "run", "--runtime.mode", "sync",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    result = summary(tmp_path / "run")
    before, after = result["nll_heldout_before"], result["nll_heldout_after"]
    falls = {sign: before[f"{sign}_nll"] - after[f"{sign}_nll"] for sign in ("positive", "negative")}
    assert falls["positive"] > falls["negative"]


def test_recorded_traces_and_corrected_objectives_do_not_go_together(byte_model: Path, tmp_path: Path) -> None:
    refused = train(
        ROOT / "recipes" / "recorded.toml", "--rollouts.path", DATA / "recorded" / "math_qwen.jsonl",
        "--model.path", byte_model, "--run.directory", tmp_path / "run", "--objective.name", "grpo",
    )  # fmt: skip
    assert refused.code == 2
    assert "recorded traces do not have; use one that needs none, like asympo or spo" in refused.stderr
    assert not (tmp_path / "run").exists()
