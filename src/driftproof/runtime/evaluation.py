"""Evaluations on the parts of a configuration: a run's held-out prompts, and benchmarks by their names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from driftproof.config import Config
from driftproof.engines.protocol import Engine
from driftproof.evaluation.benchmarks import benchmark_task, run_benchmark, writer_of
from driftproof.evaluation.heldout import evaluate, recorded_groups
from driftproof.evaluation.score import Score
from driftproof.learner.learner import Learner
from driftproof.ledger.ledger import Ledger
from driftproof.run import RunDirectory
from driftproof.runtime.build import (
    make_codec,
    make_evaluation_engine,
    make_sampling,
    make_task,
    make_verifier,
    open_engine,
)
from driftproof.tasks.checks import limit_characters
from driftproof.weights.snapshots import latest

HELDOUT_SEED = 1_000_003
"""Distance of the seeds of held-out prompts from those of training."""


def record_heldout(config: Config, directory: RunDirectory, ledger: Ledger, learner: Learner) -> None:
    """Record how the newest snapshot does on the task's held-out part; of recorded traces, how likely it finds them."""
    task, snapshot = make_task(config), latest(directory.snapshots)
    if task.recorded_heldout:
        result = learner.nll_by_sign(recorded_groups(task.recorded_heldout, make_codec(config)))
        ledger.record_evaluation("heldout_nll", learner.step, result)
    elif task.heldout[: config.evaluation.prompts] and snapshot is not None:
        with closing(open_engine(config, snapshot.path)) as engine, heldout_evaluation(config) as evaluate_engine:
            ledger.record_evaluation("heldout", learner.step, evaluate_engine(engine))


@contextmanager
def heldout_evaluation(config: Config) -> Iterator[Callable[[Engine], dict[str, Any]]]:
    """A function that evaluates an engine on the task's held-out prompts: always the same, with one seed."""
    task = make_task(config)
    codec = make_codec(config)
    prompts = task.heldout[: config.evaluation.prompts]
    sampling = replace(make_sampling(config, codec), seed=config.run.seed + HELDOUT_SEED)
    with closing(make_verifier(config, task)) as verifier:
        yield lambda engine: asdict(evaluate(engine, prompts, codec, verifier, sampling, config.evaluation.samples))


def score_benchmarks(
    config: Config, names: Sequence[str], data: Path | None, output: Path, progress: Callable[[str, int, int], object]
) -> Iterator[Score]:
    """Score on each benchmark in turn, all of them known before the first begins.

    Args:
        data: a folder with a folder of files for each benchmark; None: each comes from where it is published.
        output: the folder of their records.
        progress: called with a benchmark, its problems that are done and those there are.

    Raises:
        ValueError: unknown benchmark or unreadable data; no held-out prompts; a record in `output` of other settings.
        EngineError: the engine cannot be used, answered nothing, or its servers do not serve one model.
    """
    benchmarks = [
        # Without a problem the figure would be another, so none is dropped.
        limit_characters(
            benchmark_task(name, data, config.task.fields if name == config.task.name else {}),
            config.task.max_characters,
            drop=False,
        )
        for name in names
    ]
    codec = make_codec(config)
    sampling = make_sampling(config, codec)
    samples = config.evaluation.samples
    with closing(make_evaluation_engine(config, benchmarks[0].heldout[0], codec)) as engine:
        settings = {
            **writer_of(engine, config.model.path, retokenize=config.engine.retokenize),
            **{name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "stop_ids")},
            "first_seed": sampling.seed,
        }
        for task in benchmarks:
            records, show = output / f"{task.name}.jsonl", partial(progress, task.name)
            with closing(make_verifier(config, task)) as verifier:
                yield run_benchmark(task, engine, codec, verifier, sampling, samples, records, settings, show)
