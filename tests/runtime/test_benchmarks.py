"""Evaluations through servers, as a user calls them: what a table answers over HTTP is scored and kept."""

from __future__ import annotations

import json
import shutil
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from driftproof.cli.main import main
from driftproof.tasks import Task, build
from driftproof.tiny.model import make_tiny_model
from tests.engines.openai.server import BASE, END, TableServer, answer, serving
from tests.runtime.scorers import parity

HELDOUT, SAMPLES, LIMIT = 6, 4, 4
VLLM: dict[str, Any] = {"first_byte": 2}
"""A server whose tokens are those of our byte tokenizer."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    make_tiny_model(path, tokenizer="bytes", train=False)
    return path


@pytest.fixture(autouse=True)
def _scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


class Evaluation:
    """`driftproof eval` of one task, again and again with the same output."""

    def __init__(self, model: Path, directory: Path) -> None:
        data = directory / "data.jsonl"
        data.write_text("".join(json.dumps({"prompt": f"{i}+0=", "answer": str(i)}) + "\n" for i in range(10)))
        self.fields = {"path": str(data), "heldout": HELDOUT, "verifier": "scorers:parity"}
        self.model, self.output = model, directory / "out"

    @property
    def record(self) -> Path:
        return self.output / "jsonl.jsonl"

    @property
    def task(self) -> Task:
        return build("jsonl", **self.fields)

    def run(self, *settings: object, benchmark: bool = True) -> int:
        arguments = ["eval", self.model]
        arguments += ["--benchmarks", "jsonl", "--output", self.output] if benchmark else []
        arguments += ["--task.name", "jsonl", *(word for k, v in self.fields.items() for word in (f"--task.{k}", v))]
        arguments += ["--sampling.max_tokens", LIMIT, "--evaluation.samples", SAMPLES, *settings]
        return main([*map(str, arguments)])

    def through(self, server: TableServer, *settings: object, engine: str = "openai", benchmark: bool = True) -> int:
        return self.run("--engine.name", engine, "--engine.url", server.url, *settings, benchmark=benchmark)

    def results(self) -> dict[str, Any]:
        (found,) = json.loads((self.output / "results.json").read_text())
        assert isinstance(found, dict)
        return found


@pytest.fixture
def evaluation(model: Path, tmp_path: Path) -> Evaluation:
    return Evaluation(model, tmp_path)


def rewards_of_the_table(task: Task) -> list[float]:
    """Rewards of all responses, in order; the seed of a prompt is the run's plus its position."""
    rewards = []
    for position, prompt in enumerate(task.heldout):
        tokens = [byte + 2 for byte in prompt.text.encode()]
        for sample in range(SAMPLES):
            drawn, _, _ = answer(BASE, tokens, position + sample, LIMIT)
            rewards.append(parity(bytes(token for token in drawn if token != END).decode(), prompt.answer))
    return rewards


@pytest.mark.parametrize("engine", ["openai", "vllm"])
def test_a_servers_responses_are_scored_and_it_keeps_its_weights(evaluation: Evaluation, engine: str) -> None:
    server = TableServer(**VLLM, tells_start=engine == "openai")
    with serving(server):
        assert evaluation.through(server, engine=engine) == 0
    rewards = rewards_of_the_table(evaluation.task)
    assert 0 < fmean(rewards) < 1
    found = evaluation.results()
    assert (found["problems"], found["failed"], found["failure"], found["samples"]) == (HELDOUT, 0, "", SAMPLES)
    assert found["mean"]["value"] == pytest.approx(fmean(rewards))
    assert len(server.requests) == HELDOUT
    assert server.updates == []
    assert not any("logprobs" in body for body in server.requests)
    header = json.loads(evaluation.record.read_text().splitlines()[0])
    assert (header["served_model"], header["dialect"], header["retokenize"]) == ("tiny", "vllm", False)
    assert "weights" not in header
    assert server.url not in evaluation.record.read_text()


def test_it_goes_on_where_it_stopped_at_another_address(evaluation: Evaluation) -> None:
    server, elsewhere = TableServer(**VLLM), TableServer(**VLLM)
    with serving(server, elsewhere):
        assert evaluation.through(server) == 0
        whole, text = evaluation.results(), evaluation.record.read_text()
        lines = text.splitlines(keepends=True)
        # Killed in the middle of a line.
        evaluation.record.write_text("".join(lines[:-2]) + lines[-2][:20])
        assert evaluation.through(elsewhere) == 0
    assert evaluation.results() == whole
    assert sorted(evaluation.record.read_text().splitlines()) == sorted(text.splitlines())
    assert len(elsewhere.requests) == 2


def test_a_record_of_another_writer_is_refused_and_nothing_is_asked(
    evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    server, other = TableServer(**VLLM), TableServer(**VLLM, model="tiny-2")
    llama = TableServer(**VLLM, owner="llamacpp")
    with serving(server, other, llama):
        assert evaluation.through(server) == 0
        text = evaluation.record.read_text()
        for stranger in (other, llama):
            assert evaluation.through(stranger) == 2
            assert "is the record of another evaluation" in capsys.readouterr().err
            assert stranger.requests == []
        assert evaluation.through(server, "--engine.retokenize", "true") == 2
        assert evaluation.run() == 2
        assert "choose another --output, or remove it" in capsys.readouterr().err
        assert evaluation.record.read_text() == text
        evaluation.record.unlink()
        assert evaluation.run() == 0
        assert evaluation.through(server) == 2


def test_ev1_ev2_a_record_of_other_problems_shots_or_chat_template_is_refused(
    evaluation: Evaluation, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation.model = shutil.copytree(model, tmp_path / "model")
    data = evaluation.output.parent / "data.jsonl"
    rows = data.read_text()
    assert evaluation.run() == 0
    kept = [json.loads(line) for line in evaluation.record.read_text().splitlines()[1:]]
    assert {(line["prompt"], line["answer"], len(line["texts"])) for line in kept} == {
        (prompt.text, prompt.answer, SAMPLES) for prompt in evaluation.task.heldout
    }
    record = evaluation.record.read_text()
    capsys.readouterr()

    def refused() -> str:
        assert evaluation.run() == 2
        assert evaluation.record.read_text() == record
        return capsys.readouterr().err

    data.write_text(rows.replace("+0=", "+1="))
    assert "differs in the problems, the template around them, the shots" in refused()
    data.write_text(rows)
    (evaluation.model / "chat_template.jinja").write_text("{% for m in messages %}>{{ m.content }}{% endfor %}")
    assert "the chat template or the tokenizer" in refused()
    (evaluation.model / "chat_template.jinja").unlink()
    assert evaluation.run() == 0


def test_problems_that_fail_are_counted_with_their_reason_and_tried_again(
    evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    server = TableServer(**VLLM, faults=deque(["500", "abort"]))
    with serving(server):
        assert evaluation.through(server, "--engine.attempts", 1) == 1
        found = evaluation.results()
        assert (found["problems"], found["failed"]) == (HELDOUT - 2, 2)
        assert "2 problems failed, the same command tries them again; after 1 failed" in capsys.readouterr().out
        server.requests.clear()
        # Other attempts determine no response.
        assert evaluation.through(server, "--engine.attempts", 3) == 0
    assert len(server.requests) == 2
    assert evaluation.results()["mean"]["value"] == pytest.approx(fmean(rewards_of_the_table(evaluation.task)))


def test_a_server_that_answers_nothing_ends_it_with_the_reason(
    evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    server = TableServer(**VLLM, faults=deque(["nostop"] * HELDOUT))
    with serving(server):
        assert evaluation.through(server, "--engine.attempts", 1) == 1
        assert "no problem was answered: after 1 failed attempts" in capsys.readouterr().err
        assert evaluation.through(server) == 0


def test_text_is_enough_where_it_is_asked_for(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    server = TableServer(owner="somebody", token_ids=False)
    with serving(server):
        assert evaluation.through(server) == 1
        assert "set engine.retokenize = true" in capsys.readouterr().err
        assert evaluation.through(server, "--engine.retokenize", "true") == 0
    assert evaluation.results()["problems"] == HELDOUT
    assert {body["prompt"] for body in server.requests} == {prompt.text for prompt in evaluation.task.heldout}


def test_servers_of_different_models_are_no_engine_of_an_evaluation(
    evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = TableServer(**VLLM), TableServer(**VLLM, model="tiny-2")
    with serving(*servers):
        urls = json.dumps([server.url for server in servers])
        assert evaluation.run("--engine.name", "openai", "--engine.url", urls) == 1
    error = capsys.readouterr().err
    assert f"'tiny' (vllm) at {servers[0].url}, 'tiny-2' (vllm) at {servers[1].url}" in error


@pytest.mark.parametrize("benchmark", [True, False])
def test_no_server_is_launched(evaluation: Evaluation, benchmark: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation.run("--engine.name", "vllm", "--engine.launch", "true", benchmark=benchmark) == 2
    assert "--engine.launch false --engine.url" in capsys.readouterr().err


def test_heldout_accuracy_of_a_server(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    server = TableServer(**VLLM)
    with serving(server):
        assert evaluation.through(server, benchmark=False) == 0
    out = capsys.readouterr().out
    assert f"{HELDOUT} held-out prompts" in " ".join(out.split())
    assert str(server.port) in out
    assert [body["temperature"] for body in server.requests].count(0.0) == HELDOUT
    assert len(server.requests) == 2 * HELDOUT
