"""Held-out prompts: counted, repeatable, and asked with the same seeds as benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Completed
from driftproof.errors import EngineError
from driftproof.evaluation.benchmarks import run_benchmark
from driftproof.evaluation.heldout import evaluate, recorded_groups
from driftproof.tasks import RecordedGroup, arithmetic
from driftproof.tasks.codec import Codec
from driftproof.types import FinishReason, Prompt, Request, Sampling
from driftproof.verify import VerifierPool, build

TASK = arithmetic(digits=1, heldout=10)


class Asked(EmbeddedEngine):
    """An engine that remembers its requests, and fails those of one prompt."""

    requests: list[Request]
    failing: int | None = None

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        super().submit(request)

    def collect(self) -> list[Completed]:
        return [
            replace(one, responses=(), error="out of order") if one.request.key == self.failing else one
            for one in super().collect()
        ]


@pytest.fixture
def engine(tiny_model_dir: Path) -> Asked:
    made = Asked.from_directory(tiny_model_dir, slots=16, device="cpu")
    assert isinstance(made, Asked)
    made.requests = []
    return made


@pytest.fixture
def codec(tiny_model_dir: Path) -> Codec:
    return Codec(tiny_model_dir)


def test_it_counts_and_repeats(engine: Asked, codec: Codec) -> None:
    sampling = Sampling(max_tokens=4, stop_ids=codec.stop_ids, seed=3)
    one, two = (evaluate(engine, TASK.heldout, codec, build("exact"), sampling, samples=3) for _ in range(2))
    assert one == two
    assert (one.prompts, one.samples, one.unverified) == (10, 3, 0)
    assert 0 <= one.sampled <= 1
    assert 0 <= one.greedy <= 1


def test_held_out_prompts_and_benchmarks_are_asked_with_one_seed_rule(
    engine: Asked, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "runtime")
    sampling = Sampling(max_tokens=4, stop_ids=codec.stop_ids, seed=3)
    with VerifierPool("scorers:parity", processes=1, timeout_seconds=60) as verifier:
        found = evaluate(engine, TASK.heldout, codec, verifier, sampling, samples=4)
        sampled = [request.sampling for request in engine.requests if request.sampling.temperature > 0]
        assert [asked.seed for asked in sampled] == [3 + position for position in range(10)]
        engine.requests.clear()
        score = run_benchmark(TASK, engine, codec, verifier, sampling, 4, tmp_path / "record.jsonl", {})
    assert [request.sampling for request in engine.requests] == sampled
    assert score.mean.value == pytest.approx(found.sampled)
    assert 0 < found.sampled < 1


def test_an_answer_that_fails_ends_it(engine: Asked, codec: Codec) -> None:
    engine.failing = 7
    with pytest.raises(EngineError, match="out of order"):
        evaluate(engine, TASK.heldout, codec, build("exact"), Sampling(max_tokens=4), samples=2)


def test_recorded_groups_keep_their_rewards(codec: Codec) -> None:
    prompt = Prompt(index=0, text="1+1=", answer="2")
    recorded = [
        RecordedGroup(prompt=prompt, texts=("2", "12"), rewards=(1.0, -0.5), unfinished=frozenset({1})),
        RecordedGroup(prompt=replace(prompt, index=1), texts=("3",), rewards=(0.0,)),
    ]
    first, second = recorded_groups(recorded, codec)
    assert (first.rewards.tolist(), second.rewards.tolist()) == ([1.0, -0.5], [0.0])
    assert first.prompt_tokens.tolist() == codec.encode(prompt).tolist()
    assert [codec.decode(tokens) for tokens in first.split()] == ["2", "12"]
    assert first.finish_reasons == (FinishReason.STOP, FinishReason.LENGTH)
    assert first.retokenized
    assert np.array_equal(second.response_tokens, codec.encode_response("3"))
