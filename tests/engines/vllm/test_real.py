"""The real vLLM on CPU: `make test-vllm`, which names its interpreter in DRIFTPROOF_VLLM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM

from driftproof.engines.vllm.launch import Server, check_environment, launch
from driftproof.engines.vllm.updater import Canary, VllmUpdater
from driftproof.errors import EngineError
from driftproof.ledger.ledger import Ledger
from driftproof.weights.snapshots import Publisher
from tests.engines.vllm.test_canary import check
from tests.runtime import runs

PYTHON = Path(os.environ.get("DRIFTPROOF_VLLM", ".venv-vllm/bin/python"))
MODEL = Path("models/tiny-qwen3")


def _missing() -> str:
    try:
        check_environment(PYTHON)
    except EngineError as error:
        return str(error)
    return ""


_WHY_NOT = _missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT or "there is one"),
]


@pytest.fixture(params=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path: Path, tiny_model_dir: Path) -> Path:
    directory = tmp_path / request.param
    directory.mkdir()
    for file in tiny_model_dir.glob("*.json"):
        (directory / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    if request.param == "untied":
        model.config.tie_word_embeddings = False
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(model.config)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    with launch(PYTHON, model, log=tmp_path / "vllm.log", device="cpu", threads=1, slots=64) as running:
        assert running.wait_ready(900)
        yield running


def test_weights_arrive_exactly_and_a_foreign_snapshot_changes_nothing(
    server: Server, model: Path, tmp_path: Path
) -> None:
    policy = AutoModelForCausalLM.from_pretrained(model)
    publisher = Publisher(tmp_path / "snapshots", model)
    updater = VllmUpdater(canary=Canary(model, tolerance=1e-4))
    for step in range(3):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        snapshot = publisher.publish(step, policy.state_dict()).path
        asyncio.run(updater.update(server.url, snapshot))
    assert updater.counters["weight_updates"] == 3
    with httpx2.Client(trust_env=False) as client:
        assert client.get(f"{server.url}/weight_info").json() == {"weight_version": "step-00000002"}
        assert updater.canary is not None
        with pytest.raises(EngineError, match="does not answer with the weights of step-00000001"):
            check(updater.canary, server.url, publisher.directory / "step-00000001")
        state = dict(policy.state_dict())
        state.pop("model.norm.weight")
        foreign = publisher.publish(9, state).path
        with pytest.raises(EngineError, match=r"no tensor model\.norm\.weight"):
            asyncio.run(updater.update(server.url, foreign))
        check(updater.canary, server.url, snapshot)


def test_a_server_that_dies_under_a_run_is_started_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = runs.launch(
        "recipes/quickstart.toml",
        *("--model.path", MODEL),
        *("--run.directory", run, "--run.steps", 30, "--evaluation.prompts", 0),
        *("--engine.name", "vllm", "--engine.launch", "true", "--engine.python", PYTHON),
    )
    runs.wait_for_step(run, 5, process, limit=600)
    port = (run / "server-url").read_text().rpartition(":")[2]
    runs.kill(next(pid for pid, command in _commands() if _serves(command, port)))
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    assert "vLLM died; it is started again" in stdout
    runs.trained_once(run, 30, 16)
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.events()["server died"][0] == 1
        worker = ledger.workers()["worker-0"]
    assert worker.engine["ejected"] >= 1
    assert worker.engine["readmitted"] >= 1
    # It began again with the base model's weights, and had the newest before it was asked anything.
    assert worker.engine["canary_difference"] < 1e-3


def _commands() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(entry.name), (entry / "cmdline").read_text().split("\0")


def _serves(command: list[str], port: str) -> bool:
    """Whether this is vLLM itself on that port, and not the guard around it."""
    return command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"] and port in command


@pytest.mark.parametrize("objective", ["asympo", "grpo"])
def test_the_quickstart_learns_through_it(objective: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = runs.train(
        "recipes/quickstart.toml",
        *("--model.path", MODEL),
        *("--run.directory", run, "--run.steps", 60),
        *("--objective.name", objective),
        *("--engine.name", "vllm", "--engine.launch", "true", "--engine.python", PYTHON),
        *("--engine.canary_tolerance", 1e-4),
    )
    assert ended.code == 0, ended.stderr
    with Ledger(run / "ledger.sqlite") as ledger:
        rewards = [float(record.group.rewards.mean()) for record in ledger.records()]
        workers = list(ledger.workers().values())
    half = len(rewards) // 2
    assert sum(rewards[half:]) / half > sum(rewards[:half]) / half + 0.05
    assert sum(worker.engine["weight_updates"] for worker in workers) >= 5
    assert max(worker.engine["canary_difference"] for worker in workers) < 1e-4
    asked = sum(worker.requests_with_logprobs for worker in workers)
    assert (asked > 0) == (objective == "grpo")
