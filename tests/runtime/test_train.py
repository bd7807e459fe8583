"""Whole runs, as a user starts them: real processes, a real ledger, a real model."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import generate
from driftproof.ledger.ledger import Ledger
from driftproof.tasks import arithmetic
from driftproof.tasks.codec import Codec
from driftproof.types import Request, Sampling
from tests.runtime import runs
from tests.runtime.runs import (
    end,
    kill,
    launch,
    processes,
    summary,
    train,
    trained_once,
    wait_for_step,
    wait_until,
    write_recipe,
)


@pytest.fixture(autouse=True, scope="module")
def scorers() -> Iterator[None]:
    """Processes find `scorers` as a user's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(runs.__file__).parent))
        yield


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An asynchronous run that came to its end."""
    directory = tmp_path_factory.mktemp("finished")
    done = train(
        write_recipe(directory, tiny_model_dir), "--run.directory", directory / "run", "--evaluation.every", 2,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "on held-out prompts" in done.stdout
    assert "\x1b" not in done.stdout, "control characters in what is no terminal"
    return directory / "run"


def test_a_run_leaves_what_is_needed_to_look_resume_and_use(finished: Path) -> None:
    found = {path.name for path in finished.iterdir()}
    assert {"config.toml", "ledger.sqlite", "snapshots", "checkpoints", "metrics.jsonl", "summary.json"} <= found
    result = summary(finished)
    assert (result["steps"], result["groups_committed"], result["groups_trained"]) == (4, 16, 16)
    assert 0 <= result["accuracy_before"] <= 1
    assert 0 < result["overlap_efficiency"] <= 1.01
    assert result["age_max"] <= 2
    steps = [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    trained_once(finished, steps=4, groups_per_step=4)


def test_snapshots_are_evaluated_during_training(finished: Path) -> None:
    with Ledger(finished / "ledger.sqlite") as ledger:
        evaluations = ledger.evaluations()["heldout"]
    first, *between, last = evaluations
    assert (first, last) == (0, 4)
    assert set(between) <= {2, 3}
    assert all(evaluation["prompts"] == 2 for evaluation in evaluations.values())


def test_the_weights_have_moved_and_are_no_pickle(finished: Path, tiny_model_dir: Path) -> None:
    before = load_file(tiny_model_dir / "model.safetensors")
    after = load_file(Path(summary(finished)["model"]) / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not [path for path in finished.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]


def test_another_process_opens_the_model_and_answers_the_same(finished: Path) -> None:
    model = Path(summary(finished)["model"])
    codec = Codec(model)
    prompts = arithmetic(digits=1, heldout=20).heldout
    code = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for prompt in json.load(sys.stdin):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    answers.append(model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :].tolist())
print(json.dumps(answers))
"""
    texts = json.dumps([prompt.text for prompt in prompts])
    done = subprocess.run([sys.executable, "-c", code, model], input=texts, text=True, capture_output=True, check=True)
    requests = [
        Request(
            key=prompt.index,
            prompt=prompt,
            prompt_tokens=codec.encode(prompt),
            samples=1,
            sampling=Sampling(max_tokens=4, temperature=0.0, stop_ids=codec.stop_ids),
        )
        for prompt in prompts
    ]
    ours = generate(EmbeddedEngine.from_directory(model, slots=8), requests)
    assert json.loads(done.stdout) == [responses[0].tokens.tolist() for responses in ours]


@pytest.mark.parametrize(
    "objective", ["asympo", "grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("spo", "naive"))]
)
def test_channels_exist_exactly_where_the_objective_needs_them(
    objective: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    done = train(
        recipe,
        "--run.directory", tmp_path / "run", "--run.steps", 2, "--objective.name", objective, "--runtime.mode", "sync",
        "--evaluation.prompts", 0,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        records = list(ledger.records())
        stored = [record.group.behavior_logprobs is not None for record in records]
        assert stored == [objective == "grpo"] * 8
        counters = ledger.workers()["worker-0"]
    assert counters.requests_with_logprobs == (8 if objective == "grpo" else 0)


def test_equal_sync_runs_are_equal_and_interrupted_ones_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    common = (recipe, "--runtime.mode", "sync", "--evaluation.prompts", 0, "--run.steps", 30)
    for name in ("one", "two"):
        assert train(*common, "--run.directory", tmp_path / name).code == 0
    process = launch(*common, "--run.directory", tmp_path / "three")
    wait_for_step(tmp_path / "three", 3, process)
    kill(processes(tmp_path / "three")["learner"])
    output = end(process)
    assert process.returncode == 1
    assert "was killed by signal 9" in output[1]
    assert f"driftproof train --resume {tmp_path / 'three'}" in output[1]
    resumed = train("--resume", tmp_path / "three")
    assert resumed.code == 0, resumed.stderr
    weights = [
        load_file(tmp_path / name / "snapshots" / "latest" / "model.safetensors") for name in ("one", "two", "three")
    ]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])
    trained_once(tmp_path / "three", steps=30, groups_per_step=4)
    lines = (tmp_path / "three" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 31))


def test_a_killed_worker_costs_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    process = launch(
        recipe, "--run.directory", tmp_path / "run", "--run.steps", 100, "--evaluation.prompts", 0,
        "--rollouts.workers", 2,
    )  # fmt: skip
    wait_for_step(tmp_path / "run", 5, process)
    kill(processes(tmp_path / "run")["worker-0"])
    stdout, stderr = end(process)
    assert process.returncode == 0, stderr
    assert "worker-0 was killed by signal 9" in stdout
    assert summary(tmp_path / "run")["events"]["worker died"] == 1
    trained_once(tmp_path / "run", steps=100, groups_per_step=4)


@pytest.mark.slow
def test_a_worker_without_restarts_left_stops_the_run_which_can_go_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    run = tmp_path / "run"
    process = launch(
        recipe, "--run.directory", run, "--run.steps", 2000, "--evaluation.prompts", 0, "--runtime.max_restarts", 0,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    kill(processes(run)["worker-0"])
    _, stderr = end(process)
    assert process.returncode == 1
    assert "worker-0 was killed by signal 9" in stderr
    assert "it has no restarts left" in stderr
    assert not processes(run)
    with Ledger(run / "ledger.sqlite") as ledger:
        steps = ledger.step + 5
    assert train("--resume", run, "--run.steps", steps).code == 0
    trained_once(run, steps=steps, groups_per_step=4)
    again = train("--resume", run)
    assert again.code == 0, "a run that is finished already has nothing to do"
    trained_once(run, steps=steps, groups_per_step=4)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_run_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    process = launch(recipe, "--run.directory", tmp_path / "run", "--run.steps", 2000, "--evaluation.prompts", 0)
    wait_for_step(tmp_path / "run", 3, process)
    pids = processes(tmp_path / "run").values()
    assert len(pids) == 2
    process.send_signal(signal.SIGINT)
    _, stderr = end(process)
    assert process.returncode == 1
    assert "stopped at step" in stderr
    assert f"driftproof train --resume {tmp_path / 'run'}" in stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        step = ledger.step
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").is_dir(), "a clean stop loses no step"
    resumed = train("--resume", tmp_path / "run", "--run.steps", step + 10)
    assert resumed.code == 0, resumed.stderr
    assert f"from step {step} " in resumed.stdout
    trained_once(tmp_path / "run", steps=step + 10, groups_per_step=4)


def test_processes_stop_when_their_parent_is_killed(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    process = launch(recipe, "--run.directory", tmp_path / "run", "--run.steps", 5000, "--evaluation.prompts", 0)
    wait_for_step(tmp_path / "run", 2, process)
    pids = processes(tmp_path / "run").values()
    assert len(pids) == 2
    kill(process.pid)
    end(process)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_without_staleness_every_response_is_written_by_the_newest_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    done = train(
        recipe, "--run.directory", tmp_path / "run", "--run.steps", 3, "--runtime.mode", "sync",
        "--learner.publish_every", 2, "--learner.keep_snapshots", 10, "--evaluation.prompts", 0,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    snapshots = sorted(path.name for path in (tmp_path / "run" / "snapshots").glob("step-*"))
    assert snapshots == [f"step-{step:08d}" for step in range(4)]
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert {record.age for record in ledger.records()} == {0}


@pytest.mark.slow
def test_snapshots_are_evaluated_during_training_and_a_killed_evaluator_is_replaced(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    run = tmp_path / "run"
    process = launch(recipe, "--run.directory", run, "--run.steps", 400, "--evaluation.every", 5)
    wait_for_step(run, 5, process)
    kill(processes(run)["evaluator"])
    stdout, stderr = end(process)
    assert process.returncode == 0, stderr
    assert "evaluator was killed by signal 9" in stdout
    with Ledger(run / "ledger.sqlite") as ledger:
        evaluations = ledger.evaluations()["heldout"]
    first, *between, last = evaluations
    assert (first, last) == (0, 400)
    assert between
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise([first, *between]))
    assert evaluations[between[0]]["prompts"] == 2
    trained_once(run, steps=400, groups_per_step=4)


def test_evaluation_during_training_needs_prompts(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = train(write_recipe(tmp_path, tiny_model_dir), "--evaluation.every", 5, "--evaluation.prompts", 0)
    assert done.code == 2
    assert "evaluation.every needs held-out prompts" in done.stderr
