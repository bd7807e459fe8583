"""The real server of llama.cpp: `make test-llama`, which names its interpreter in DRIFTPROOF_LLAMA."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from driftproof.cli.main import main
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.openai.engine import OpenAIEngine
from driftproof.engines.openai.probe import probe
from driftproof.engines.openai.wire import Dialect
from driftproof.engines.protocol import Engine, generate
from driftproof.errors import EngineError
from driftproof.ledger.ledger import Ledger
from driftproof.rollout.requests import make_request
from driftproof.tasks import build
from driftproof.tasks.codec import Codec
from driftproof.types import Response, Sampling
from driftproof.weights.models import inspect_model
from tests.runtime import runs

PYTHON = Path(os.environ.get("DRIFTPROOF_LLAMA", ".venv-llama/bin/python"))
MODEL = Path("models/tiny-bytes")
SCRIPT = Path(__file__).with_name("serve_llama.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.llama,
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"{PYTHON} is missing; make llama makes it"),
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing; make {MODEL} makes it"),
]


@contextlib.contextmanager
def serving(model: Path, directory: Path, *, key: str = "") -> Iterator[str]:
    with (directory / "llama.log").open("w") as log:
        server = subprocess.Popen(
            [PYTHON, SCRIPT, model, directory / "model.gguf", *([key] if key else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        assert url, (directory / "llama.log").read_text()[-2000:]
        yield url
    finally:
        server.stdin.close()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(MODEL, tmp_path_factory.mktemp("llama")) as address:
        yield address


def engine_of(url: str, *, model: Path = MODEL, retokenize: bool = False) -> OpenAIEngine:
    return OpenAIEngine(
        [url],
        vocabulary=inspect_model(model).vocabulary,
        tokenizer=Codec(model),
        sample_text="47+85= é",
        slots=8,
        retokenize=retokenize,
    )


def draw(engine: Engine, count: int, samples: int, **sampling: float) -> list[tuple[Response, ...]]:
    codec = Codec(MODEL)
    settings = Sampling(max_tokens=8, stop_ids=codec.stop_ids, **sampling)  # type: ignore[arg-type]
    requests = [
        make_request(
            index,
            prompt,
            codec.encode(prompt),
            samples=samples,
            sampling=settings,
            want_logprobs=False,
        )
        for index, prompt in enumerate(build("arithmetic").heldout[:count])
    ]
    return generate(engine, requests)


def test_what_it_is_and_can(url: str) -> None:
    facts = probe(url)
    assert (facts.dialect, facts.token_ids, facts.logprobs, facts.max_length) == (Dialect.LLAMACPP, True, False, 256)
    assert facts.version


def test_it_answers_as_our_own_engine_does_at_the_same_weights(url: str) -> None:
    ours = EmbeddedEngine.from_directory(MODEL, slots=64, device="cpu")
    with contextlib.closing(engine_of(url)) as theirs:
        pairs = zip(draw(ours, 128, 1, temperature=0.0), draw(theirs, 128, 1, temperature=0.0), strict=True)
        assert all(one.tokens.tolist() == other.tokens.tolist() for (one,), (other,) in pairs)
        sampled = draw(theirs, 64, 8)
        again = draw(theirs, 64, 8)
    texts = [[tuple(response.tokens) for response in responses] for responses in sampled]
    assert texts == [[tuple(response.tokens) for response in responses] for responses in again]
    # The responses of one prompt have seeds of their own.
    assert np.mean([len(set(group)) for group in texts]) > 2


def test_the_whole_distribution_is_sampled(url: str) -> None:
    ours = EmbeddedEngine.from_directory(MODEL, slots=128, device="cpu")
    with contextlib.closing(engine_of(url)) as theirs:
        counts = []
        for engine in (ours, theirs):
            ((*responses,),) = draw(engine, 1, 2000, temperature=1.5)
            counts.append(np.bincount([response.tokens[0] for response in responses], minlength=258) / 2000)
    # Two samples of 2000 from one distribution differ by about 0.03 in total variation; min-p or top-k by more.
    assert abs(counts[0] - counts[1]).sum() / 2 < 0.08


def test_bytes_that_are_no_text_are_counted_in_full(tmp_path: Path) -> None:
    """Random weights write what no decoder can read."""
    assert main(["tiny-model", str(tmp_path / "random"), "--tokenizer", "bytes", "--random"]) == 0
    with serving(tmp_path / "random", tmp_path) as url, contextlib.closing(engine_of(url)) as engine:
        answers = draw(engine, 32, 4)
        assert not engine.counters["errors.invalid_reply"]
    responses = [response for group in answers for response in group]
    assert all(len(r.tokens) == 8 for r in responses if r.finish_reason == "length")
    assert sum(r.finish_reason == "length" for r in responses) > 100


def test_the_key_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(MODEL, tmp_path, key="s3cret") as url:
        with pytest.raises(EngineError, match=r"status 401.*--engine.api_key_variable"):
            probe(url)
        monkeypatch.setenv("LLAMA_KEY", "s3cret")
        assert probe(url, api_key_variable="LLAMA_KEY").token_ids


@pytest.mark.parametrize("retokenize", ["false", "true"])
def test_a_run_trains_on_what_it_writes(retokenize: str, url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = runs.train(
        *("recipes/quickstart.toml", "--model.path", MODEL, "--run.directory", run, "--run.steps", 6),
        *("--engine.name", "openai", "--engine.url", url, "--engine.slots", 8, "--engine.retokenize", retokenize),
        *("--evaluation.prompts", 0),
    )
    assert ended.code == 0, ended.stderr
    runs.trained_once(run, 6, 16)
    with Ledger(run / "ledger.sqlite") as ledger:
        groups = [record.group for record in ledger.records()]
    assert {group.retokenized for group in groups} == {retokenize == "true"}
    assert 0.1 < np.mean([group.rewards.mean() for group in groups]) < 0.6


def test_an_objective_that_needs_log_probs_is_refused(url: str, tmp_path: Path) -> None:
    ended = runs.train(
        *("recipes/quickstart.toml", "--model.path", MODEL, "--run.directory", tmp_path / "run"),
        *("--engine.name", "openai", "--engine.url", url, "--objective.name", "grpo"),
    )
    assert ended.code == 2
    assert f"needs behavior_logprobs, which {url} (llama.cpp) does not give" in ended.stderr


def test_it_is_scored_on_a_benchmark_as_our_own_engine_is(url: str, tmp_path: Path) -> None:
    means = []
    for name, settings in (("ours", []), ("theirs", ["--engine.name", "openai", "--engine.url", url])):
        output = tmp_path / name
        arguments = ["eval", MODEL, "--benchmarks", "arithmetic", "--output", output, "--sampling.max_tokens", 5]
        arguments += ["--task.heldout", 200, *settings]
        assert main([*map(str, arguments)]) == 0
        (score,) = json.loads((output / "results.json").read_text())
        assert (score["problems"], score["failed"]) == (200, 0)
        means.append(score["mean"]["value"])
    assert abs(means[0] - means[1]) < 0.1
