"""`driftproof eval`: a model on held-out prompts or benchmarks; `driftproof verify`: a verifier on labels."""

import json
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from driftproof.cli.commands import Commands, command, located, print_lines
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError, command_line
from driftproof.run import LATEST, RunDirectory
from driftproof.values import split_overrides

EMBEDDED = ["--engine.name", "embedded", "--engine.url", "[]", "--engine.launch", "false"]
"""Settings under which a model directory itself is evaluated."""


def add(commands: Commands) -> None:
    evaluation = command(commands, "eval", _eval, "accuracy of a model on held-out prompts", settings=True)
    evaluation.add_argument("model", type=Path, help="a directory, such as a run's snapshots/latest, or a hub name")
    evaluation.add_argument(
        "recipe", type=Path, nargs="?", help="recipe that says task and sampling; a run's snapshot has its own"
    )
    evaluation.add_argument("--benchmarks", default="", metavar="A,B", help="tasks to be scored on, such as math500")
    evaluation.add_argument("--data", type=Path, metavar="DIR", help="where DIR/NAME/test.jsonl holds each benchmark")
    evaluation.add_argument("--output", type=Path, metavar="DIR", help="records and results; the same again goes on")
    scoring = command(commands, "verify", _verify, "agreement of a verifier with recorded labels")
    scoring.add_argument("file", type=Path, help="recorded responses with their correctness, JSON lines")
    scoring.add_argument("--task", default="math", metavar="VERIFIER", help="name of the verifier, such as math")


def _eval(known: Namespace) -> int:
    from driftproof.runtime.resources import evaluation_threads, limit_threads, quiet_libraries
    from driftproof.weights.hub import named
    from driftproof.weights.models import inspect_model

    quiet_libraries()
    config = located(_recipe(known))
    inspect_model(config.model.path)
    limit_threads(evaluation_threads(config))
    # Servers have weights of their own.
    writer = ", ".join(config.engine.url) or named(config.model.path)
    if known.benchmarks:
        output = known.output or Path("evals") / known.model.resolve().name
        return _eval_benchmarks(config, writer, known.benchmarks.split(","), known.data, output)
    if known.data or known.output:
        raise ConfigError("--data and --output belong to --benchmarks: driftproof eval MODEL --benchmarks math500")
    _eval_heldout(config, writer)
    return 0


def _recipe(known: Namespace) -> Config:
    """The recipe that is given; without one that of the run that the model is a snapshot of, but for its servers.

    Raises:
        ConfigError: none of them names a task, and no benchmark does.
    """
    if RunDirectory(path=known.model).config.is_file() and not (known.model / "config.json").exists():
        latest = RunDirectory(path=known.model).snapshots / LATEST
        raise ConfigError(f"{known.model} is a run; evaluate its model: {command_line('driftproof', 'eval', latest)}")
    model = f"--model.path={known.model}"
    named = {f"{section}.{key}" for section, key, _ in split_overrides(known.settings)}
    run = known.model.absolute().parent.parent
    of_a_run = (
        known.model.absolute().parent == RunDirectory(path=run).snapshots and RunDirectory(path=run).config.is_file()
    )
    if known.recipe is None and of_a_run and "task.name" not in named:
        engine = [] if any(name.startswith("engine.") for name in named) else EMBEDDED
        config = Config.written_in(run, [*engine, *known.settings, model])
        print_lines(Console(), f"task and sampling of {run}")
    else:
        config = load_config(known.recipe, [*known.settings, model])
    if not known.benchmarks and "name" not in config.task.model_fields_set:
        raise ConfigError(
            "eval needs a task: give a recipe that names one (driftproof eval MODEL RECIPE), --task.name NAME, "
            "--benchmarks NAME, or a model in the snapshots of a run, whose task is taken"
        )
    return config


def _eval_heldout(config: Config, writer: str) -> None:
    from driftproof.evaluation.heldout import evaluate
    from driftproof.report.tables import evaluation_table
    from driftproof.runtime.build import make_codec, make_evaluation_engine, make_sampling, make_task, make_verifier

    task = make_task(config)
    codec = make_codec(config)
    prompts = task.heldout[: config.evaluation.prompts]
    if not prompts:
        raise ConfigError(f"task {task.name!r} has no held-out prompts, or evaluation.prompts is 0")
    sampling = make_sampling(config, codec)
    with (
        closing(make_verifier(config, task)) as verifier,
        closing(make_evaluation_engine(config, prompts[0], codec)) as engine,
    ):
        result = evaluate(engine, prompts, codec, verifier, sampling, config.evaluation.samples)
    title = f"{writer} on {task.name}, {result.prompts} held-out prompts"
    Console().print(evaluation_table(title, result, config.sampling.temperature))


def _eval_benchmarks(config: Config, writer: str, names: list[str], data: Path | None, output: Path) -> int:
    from driftproof.report.tables import benchmark_table
    from driftproof.runtime.evaluation import score_benchmarks

    console = Console()

    def progress(name: str, done: int, of: int) -> None:
        if console.is_terminal or done == of:
            console.print(f"{name}: {done} of {of} problems", end="\n" if done == of else "\r", highlight=False)

    found = []
    for score in score_benchmarks(config, names, data, output, progress):
        if score.failed:
            failed = f"{score.name}: {score.failed} problems failed, the same command tries them again"
            print_lines(console, f"{failed}; {score.failure}")
        found.append(score)
    results = output / "results.json"
    results.write_text(json.dumps([asdict(score) for score in found], indent=2))
    title = f"{writer}, {config.evaluation.samples} responses a problem, 95% intervals"
    console.print(benchmark_table(title, found))
    print_lines(console, str(results))
    return 1 if any(score.failed for score in found) else 0


def _verify(known: Namespace) -> None:
    from driftproof.evaluation.agreement import agreement
    from driftproof.tasks import read_recorded
    from driftproof.verify import build

    groups = read_recorded(known.file)
    if blank := [group.prompt.text for group in groups if not group.prompt.answer]:
        raise ConfigError(
            f"{known.file}: {len(blank)} of {len(groups)} prompts have no answer to verify with, like {blank[0][:60]!r}"
        )
    with closing(build(known.task, timeout_seconds=20)) as verifier:
        print(json.dumps(asdict(agreement(groups, verifier)), indent=2))
