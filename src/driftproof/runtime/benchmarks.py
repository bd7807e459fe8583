"""Benchmarks by their names, on the model and the engine of a configuration.

Guarantees: a benchmark's record is beside its figures, so that the same command goes on where it stopped; it says what
wrote the responses: the weights of a model directory, or what servers, wherever they are, call their model and speak.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from driftproof import tasks
from driftproof.config import Config
from driftproof.engines.protocol import Engine
from driftproof.errors import ConfigError, EngineError
from driftproof.evaluation.benchmarks import run_benchmark
from driftproof.evaluation.score import Score
from driftproof.runtime.build import make_evaluation_engine, make_sampling, make_verifier
from driftproof.tasks import Task
from driftproof.tasks.codec import Codec
from driftproof.weights.models import fingerprint_weights, inspect_model


def score_benchmarks(
    config: Config, names: Sequence[str], data: Path | None, output: Path, console: Console
) -> Iterator[Score]:
    """Score on each benchmark in turn, all of them known before the first begins.

    Raises:
        TaskError: unknown benchmark, or its data cannot be read. ConfigError: a task without held-out prompts.
        ConfigError: a record in `output` is that of other settings.
        EngineError: the engine cannot be used, answered nothing, or its servers do not serve one model.
    """
    benchmarks = [_benchmark(config, name, data) for name in names]
    codec = Codec(config.model.path)
    sampling = make_sampling(config, codec)
    with closing(make_evaluation_engine(config, benchmarks[0].heldout[0], codec)) as engine:
        settings = {
            **_writer(config, engine),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_tokens,
            "first_seed": sampling.seed,
        }
        for task in benchmarks:

            def progress(done: int, of: int, name: str = task.name) -> None:
                if console.is_terminal or done == of:
                    console.print(f"{name}: {done} of {of} problems", end="\n" if done == of else "\r", highlight=False)

            with closing(make_verifier(config, task)) as verifier:
                yield run_benchmark(
                    task,
                    engine,
                    codec,
                    verifier,
                    sampling,
                    config.evaluation.samples,
                    output / f"{task.name}.jsonl",
                    settings,
                    progress,
                )


def _writer(config: Config, engine: Engine) -> dict[str, Any]:
    """What wrote the responses. An address is no part of it, so that a record can be gone on with elsewhere."""
    from driftproof.engines.openai.engine import OpenAIEngine

    if not isinstance(engine, OpenAIEngine):
        return {"weights": fingerprint_weights(config.model.path)}
    served = {(facts.dialect.value, facts.model): facts.url for facts in engine.facts}
    if len(served) > 1:
        different = ", ".join(f"{model!r} ({dialect}) at {url}" for (dialect, model), url in sorted(served.items()))
        raise EngineError(
            f"the servers do not serve one model, as an evaluation needs: {different}; name the model with "
            "--engine.model, or give the addresses of some alone"
        )
    ((dialect, model),) = served
    return {
        "served_model": model,
        "dialect": dialect,
        "tokenizer": inspect_model(config.model.path).fingerprint,
        "retokenize": config.engine.retokenize,
    }


def _benchmark(config: Config, name: str, data: Path | None) -> Task:
    fields = dict(config.task.fields) if name == config.task.name else {}
    if data is not None:
        fields |= _files(name, data / name)
    task = tasks.build(name, **fields)
    if not task.heldout:
        raise ConfigError(f"task {name!r} has no held-out problems to be scored on")
    return task


def _files(name: str, directory: Path) -> dict[str, Path]:
    """The fields that make a task of a benchmark's files; one that can be trained on takes two."""
    if name in tasks.TASKS and "heldout" in inspect.signature(tasks.TASKS[name]).parameters:
        return {"path": directory / "train.jsonl", "heldout": directory / "test.jsonl"}
    return {"path": directory / "test.jsonl"}
