"""`driftproof eval`: a model on held-out prompts or benchmarks; `driftproof verify`: a verifier on labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from driftproof.cli.commands import Commands, command
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError

if TYPE_CHECKING:
    from driftproof.evaluation.score import Score


def add(commands: Commands) -> None:
    evaluation = command(commands, "eval", _eval, "accuracy of a model on held-out prompts", settings=True)
    evaluation.add_argument("model", type=Path, help="a model directory, such as a run's snapshots/latest")
    evaluation.add_argument("recipe", type=Path, nargs="?", help="recipe that says task and sampling")
    evaluation.add_argument("--benchmarks", default="", metavar="A,B", help="tasks to be scored on, such as math500")
    evaluation.add_argument("--data", type=Path, metavar="DIR", help="where DIR/NAME/test.jsonl holds each benchmark")
    evaluation.add_argument("--output", type=Path, metavar="DIR", help="records and results; the same again goes on")
    scoring = command(commands, "verify", _verify, "agreement of a verifier with recorded labels")
    scoring.add_argument("file", type=Path, help="recorded responses with their correctness, JSON lines")
    scoring.add_argument("--task", default="math", metavar="VERIFIER", help="name of the verifier, such as math")


def _eval(known: argparse.Namespace, overrides: list[str]) -> int:
    from contextlib import closing

    from driftproof.evaluation.heldout import evaluate
    from driftproof.report.tables import evaluation_table
    from driftproof.runtime.build import make_evaluation_engine, make_sampling, make_task, make_verifier
    from driftproof.runtime.resources import evaluation_threads, limit_threads, quiet_libraries
    from driftproof.tasks.codec import Codec
    from driftproof.weights.models import inspect_model

    quiet_libraries()
    config = load_config(known.recipe, [*overrides, "--model.path", str(known.model)])
    inspect_model(config.model.path)
    limit_threads(evaluation_threads(config))
    if known.benchmarks:
        return _eval_benchmarks(config, known)
    if known.data or known.output:
        raise ConfigError("--data and --output belong to --benchmarks: driftproof eval MODEL --benchmarks math500")
    task = make_task(config)
    codec = Codec(config.model.path)
    prompts = task.heldout[: config.evaluation.prompts]
    if not prompts:
        raise ConfigError(f"task {task.name!r} has no held-out prompts, or evaluation.prompts is 0")
    sampling = make_sampling(config, codec)
    with (
        closing(make_verifier(config, task)) as verifier,
        closing(make_evaluation_engine(config, prompts[0], codec)) as engine,
    ):
        result = evaluate(engine, prompts, codec, verifier, sampling, config.evaluation.samples)
    title = f"{_writer(config)} on {task.name}, {result.prompts} held-out prompts"
    Console().print(evaluation_table(title, result, config.sampling.temperature))
    return 0


def _eval_benchmarks(config: Config, known: argparse.Namespace) -> int:
    import json

    from driftproof.report.tables import benchmark_table
    from driftproof.runtime.evaluation import score_benchmarks

    output: Path = known.output or Path("evals") / known.model.resolve().name
    console = Console()
    found: list[Score] = []

    def progress(name: str, done: int, of: int) -> None:
        if console.is_terminal or done == of:
            console.print(f"{name}: {done} of {of} problems", end="\n" if done == of else "\r", highlight=False)

    for score in score_benchmarks(config, known.benchmarks.split(","), known.data, output, progress):
        if score.failed:
            line = f"{score.name}: {score.failed} problems failed, the same command tries them again; {score.failure}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        found.append(score)
    results = output / "results.json"
    results.write_text(json.dumps([score.to_json() for score in found], indent=2))
    title = f"{_writer(config)}, {config.evaluation.samples} responses a problem, 95% intervals"
    console.print(benchmark_table(title, found))
    console.print(str(results), markup=False, highlight=False, soft_wrap=True)
    return 1 if any(score.failed for score in found) else 0


def _writer(config: Config) -> str:
    """Name of what answers: servers, which have weights of their own, or the model directory."""
    return ", ".join(config.engine.url) or str(config.model.path)


def _verify(known: argparse.Namespace, _: list[str]) -> int:
    import json
    from contextlib import closing

    from driftproof.evaluation.agreement import agreement
    from driftproof.tasks import read_recorded
    from driftproof.verify import build

    groups = read_recorded(known.file)
    if blank := [group.prompt.text for group in groups if not group.prompt.answer]:
        raise ConfigError(
            f"{known.file}: {len(blank)} of {len(groups)} prompts have no answer to verify with, like {blank[0][:60]!r}"
        )
    with closing(build(known.task, timeout_seconds=20)) as verifier:
        found = agreement(groups, verifier)
    print(json.dumps(found.to_json(), indent=2))
    return 0
