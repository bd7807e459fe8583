"""Benchmarks: the figures by enumeration, the record through interruptions, a real engine."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Completed, Engine
from driftproof.errors import ConfigError
from driftproof.evaluation.benchmarks import read_record, run_benchmark, task_facts
from driftproof.evaluation.score import Problem, Score, pass_at_k, score
from driftproof.tasks import Task, build
from driftproof.tasks.codec import Codec
from driftproof.types import Request, Sampling
from driftproof.verify import build as build_verifier

ARITHMETIC = build("arithmetic", digits=2)
TASK = replace(ARITHMETIC, name="sums", heldout=ARITHMETIC.heldout[:7])
SETTINGS = {"model": "abc"}


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k(outcomes: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    choices = list(itertools.combinations(outcomes, k))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(fmean(any(choice) for choice in choices))


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_what_cannot_be(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, right, k)


def problem(index: int, *rewards: float, unverified: int = 0) -> Problem:
    return Problem(index=index, rewards=rewards, unverified=unverified, texts=("",) * len(rewards))


def test_figures_by_hand() -> None:
    found = score("x", [problem(0, 1, 1, 0, 0), problem(1, 0, 0, 0, 0, unverified=1)], failed=3)
    assert (found.problems, found.failed, found.samples, found.unverified) == (2, 3, 4, 1)
    assert found.mean.value == 0.25
    assert {k: estimate.value for k, estimate in found.passed.items()} == pytest.approx({1: 0.25, 2: 5 / 12, 4: 0.5})
    assert found.mean.low <= found.mean.value <= found.mean.high
    assert json.loads(json.dumps(asdict(found)))["passed"]["4"]["value"] == 0.5
    with pytest.raises(ConfigError, match="no problem was answered"):
        score("x", [])


@pytest.fixture
def parts(tiny_model_dir: Path) -> tuple[EmbeddedEngine, Codec]:
    return EmbeddedEngine.from_directory(tiny_model_dir, slots=8, device="cpu"), Codec(tiny_model_dir)


def run(
    engine: Engine, codec: Codec, record: Path, settings: Any = SETTINGS, samples: int = 4, task: Task = TASK
) -> Score:
    sampling = Sampling(max_tokens=5, stop_ids=codec.stop_ids, seed=3)
    verifier = build_verifier("exact")
    return run_benchmark(task, engine, codec, verifier, sampling, samples, record, settings)


def test_every_problem_is_answered_and_kept(parts: tuple[EmbeddedEngine, Codec], tmp_path: Path) -> None:
    found = run(*parts, tmp_path / "deep" / "sums.jsonl")
    assert (found.problems, found.samples, found.failed) == (7, 4, 0)
    header, *lines = map(json.loads, (tmp_path / "deep" / "sums.jsonl").read_text().splitlines())
    assert header.items() >= {"benchmark": "sums", "samples": 4, "problems": 7, "model": "abc"}.items()
    assert header.keys() >= {"questions", "golds", "prompt_tokens", "verifier"}
    assert [(line["prompt"], line["answer"]) for line in sorted(lines, key=lambda line: line["index"])] == [
        (prompt.text, prompt.answer) for prompt in TASK.heldout
    ]
    assert sorted(line["index"] for line in lines) == list(range(7))
    assert all(len(line["texts"]) == len(line["rewards"]) == 4 for line in lines)


def test_what_a_crash_cut_off_is_answered_again_with_the_same_figures(
    parts: tuple[EmbeddedEngine, Codec], tmp_path: Path
) -> None:
    record = tmp_path / "sums.jsonl"
    whole = run(*parts, record)
    text = record.read_text()
    for length in (len(text) // 3, len(text) - 1, text.index("\n") + 1):
        record.write_text(text[:length])
        assert run(*parts, record) == whole
        assert sorted(record.read_text().splitlines()) == sorted(text.splitlines())


class Counting:
    """An engine that fails the requests of some problems, and counts those it was given."""

    def __init__(self, engine: EmbeddedEngine, failing: set[int]) -> None:
        self.engine, self.failing, self.asked = engine, failing, 0
        self.capabilities, self.counters = engine.capabilities, engine.counters
        self.close, self.load = engine.close, engine.load

    @property
    def room(self) -> int:
        return self.engine.room

    def submit(self, request: Request) -> None:
        self.asked += 1
        self.engine.submit(request)

    def collect(self) -> list[Completed]:
        return [
            Completed(request=found.request, responses=(), error="out of order")
            if found.request.key in self.failing
            else found
            for found in self.engine.collect()
        ]


def test_nothing_is_asked_twice_and_failures_are_tried_again(
    parts: tuple[EmbeddedEngine, Codec], tmp_path: Path
) -> None:
    engine, codec = parts
    record = tmp_path / "sums.jsonl"
    first = run(Counting(engine, {2, 5}), codec, record)
    assert (first.problems, first.failed) == (5, 2)
    again = Counting(engine, set())
    assert run(again, codec, record).problems == 7
    assert again.asked == 2
    once_more = Counting(engine, set())
    run(once_more, codec, record)
    assert once_more.asked == 0


def test_a_record_of_other_settings_is_refused_and_stays(parts: tuple[EmbeddedEngine, Codec], tmp_path: Path) -> None:
    record = tmp_path / "sums.jsonl"
    run(*parts, record)
    text = record.read_text()
    for settings, samples in (({"model": "other"}, 4), (SETTINGS, 2)):
        with pytest.raises(ConfigError, match="is the record of another evaluation"):
            run(*parts, record, settings, samples)
    assert record.read_text() == text


def test_a_record_of_other_problems_golds_verifiers_or_chat_templates_is_refused(
    parts: tuple[EmbeddedEngine, Codec], tiny_model_dir: Path, tmp_path: Path
) -> None:
    engine, codec = parts
    record = tmp_path / "sums.jsonl"
    run(engine, codec, record)
    text = record.read_text()
    first, *others = TASK.heldout
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in messages %}={{ m.content }}{% endfor %}")
    chat = Codec(model)
    for task, tokenizer, difference in (
        (replace(TASK, heldout=(replace(first, text="1+1="), *others)), codec, "the problems, the template around"),
        (replace(TASK, heldout=(replace(first, system="Add."), *others)), codec, "the problems, the template around"),
        (
            replace(TASK, heldout=(replace(first, answer="0"), *others)),
            codec,
            "differs in the gold answers or other columns",
        ),
        (replace(TASK, verifier="math"), codec, "differs in the verifier; choose another --output"),
        (TASK, chat, "differs in the chat template or the tokenizer; choose"),
    ):
        with pytest.raises(ConfigError, match=difference):
            run(engine, tokenizer, record, task=task)
        assert record.read_text() == text
    record.write_text("[" * 2000 + "\n")
    with pytest.raises(ConfigError, match="its first line, which is no record's"):
        run(engine, codec, record)


def test_a_verifier_of_your_own_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    codec, task = Counting, replace(TASK, verifier="rewards_of_mine:score", heldout=())
    assert task_facts(task, codec)["verifier"] == ["rewards_of_mine:score"]  # type: ignore[arg-type]
    facts = []
    for number in (0, 1):
        (tmp_path / "rewards_of_mine.py").write_text(f"def score(text, answer):\n    return {number}\n")
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / "inner.py").write_text(f"raise SystemExit({number})\n")
        importlib.invalidate_caches()
        for name in ("rewards_of_mine:score", "package.inner:score"):
            facts += task_facts(replace(task, verifier=name), codec)["verifier"]  # type: ignore[arg-type]
    assert len(set(facts)) == 4


@given(st.text(max_size=60))
def test_a_damaged_record_is_refused_with_its_line(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    record = tmp_path_factory.mktemp("record") / "r.jsonl"
    record.write_text("{}\n" + line.replace("\n", " ").replace("\r", " ") + "\n", newline="")
    with contextlib.suppress(ConfigError):
        assert all(isinstance(found, Problem) for found in read_record(record, {}))
