"""`driftproof`: train, eval, lab, groups, ledger, verify, inbox, report, check, tiny-model.

Guarantees: bad input ends with one sentence on stderr and exit code 2, a run that ended or was stopped early with 1;
only errors in driftproof itself show a traceback.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from driftproof.config import Config, load_config, parse_overrides
from driftproof.errors import ConfigError, DriftproofError
from driftproof.lab.settings import LabConfig

if TYPE_CHECKING:
    from driftproof.lab.runner import Result
    from driftproof.run import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # Objectives of one's own are found in the working directory, however driftproof was started.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    words, settings = split_settings(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    known = parser.parse_args(words)
    command: Callable[[argparse.Namespace, list[str]], int] = known.command
    if settings and command not in (_train, _eval, _lab, _check, _tiny_model):
        parser.error(f"settings belong to train, eval, lab, check and tiny-model: {' '.join(settings)}")
    try:
        return command(known, settings)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except DriftproofError as error:
        print(f"driftproof: {error}", file=sys.stderr)
        return error.exit_code


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of the command, and the `--section.key value` settings among them."""
    words: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and "." in name):
            words.append(word)
            continue
        settings.append(word)
        if not equals and rest:
            settings.append(rest.pop(0))
    return words, settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="driftproof", description=__import__("driftproof").__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="post-train a model as a recipe says", allow_abbrev=False)
    train.add_argument("recipe", type=Path, nargs="?", help="a TOML recipe; settings on top: --section.key value")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this directory")
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved configuration, stop"
    )
    train.set_defaults(command=_train)

    evaluation = commands.add_parser("eval", help="accuracy of a model on held-out prompts", allow_abbrev=False)
    evaluation.add_argument("model", type=Path, help="a model directory, such as a run's snapshots/latest")
    evaluation.add_argument("recipe", type=Path, nargs="?", help="recipe that says task and sampling")
    evaluation.add_argument("--benchmarks", default="", metavar="A,B", help="tasks to be scored on, such as math500")
    evaluation.add_argument("--data", type=Path, metavar="DIR", help="where DIR/NAME/test.jsonl holds each benchmark")
    evaluation.add_argument("--output", type=Path, metavar="DIR", help="records and results; the same again goes on")
    evaluation.set_defaults(command=_eval)

    lab = commands.add_parser(
        "lab",
        help="run a grid of objectives, staleness and seeds, and report on it",
        usage="driftproof lab RECIPE [--dry-run] [--section.key value ...]\n       driftproof lab report DIRECTORY",
        allow_abbrev=False,
    )
    lab.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML recipe with a [lab] section")
    lab.add_argument("directory", type=Path, nargs="?", metavar="DIRECTORY", help="of a grid, to draw its report again")
    lab.add_argument("--dry-run", action="store_true", help="check everything, list the runs to be made, stop")
    lab.set_defaults(command=_lab)

    groups = commands.add_parser("groups", help="look at the rollouts of a run", allow_abbrev=False)
    groups.add_argument("run", type=Path)
    groups.add_argument("--by", choices=("best", "worst", "age", "prompt"), default="best")
    groups.add_argument("--limit", type=int, default=10)
    groups.set_defaults(command=_groups)

    _add_ledger(commands.add_parser("ledger", help="verify, repair or prune a run's ledger", allow_abbrev=False))

    scoring = commands.add_parser("verify", help="agreement of a verifier with recorded labels", allow_abbrev=False)
    scoring.add_argument("file", type=Path, help="recorded responses with their correctness, JSON lines")
    scoring.add_argument("--task", default="math", metavar="VERIFIER", help="name of the verifier, such as math")
    scoring.set_defaults(command=_verify)

    inbox = commands.add_parser("inbox", help="let any process write rollouts, over HTTP", allow_abbrev=False)
    inbox.add_argument("run", type=Path)
    inbox.add_argument("--host", default="127.0.0.1")
    inbox.add_argument("--port", type=int, default=0, help="0: any free one")
    inbox.add_argument("--token-env", default="", metavar="NAME", help="environment variable that holds the token")
    inbox.add_argument("--max-megabytes", type=int, default=64, help="largest request")
    inbox.set_defaults(command=_inbox)

    report = commands.add_parser("report", help="draw a run's picture and print its summary", allow_abbrev=False)
    report.add_argument("run", type=Path)
    report.set_defaults(command=_report)

    check = commands.add_parser("check", help="what this machine can run, and what is missing", allow_abbrev=False)
    check.add_argument("recipe", type=Path, nargs="?", help="whose needs are set beside what is here")
    check.set_defaults(command=_check)

    tiny = commands.add_parser("tiny-model", help="make a small base policy on this machine", allow_abbrev=False)
    tiny.add_argument("directory", type=Path)
    tiny.add_argument("--architecture", choices=("qwen3", "llama"), default="qwen3")
    tiny.add_argument("--tokenizer", choices=("characters", "bytes"), default="characters")
    tiny.add_argument("--task", default="arithmetic", help="what it learns; its fields on top: --task.field value")
    tiny.add_argument("--accuracy", type=float, default=0.33, help="sampled accuracy at which it stops learning")
    tiny.add_argument("--seed", type=int, default=0)
    tiny.add_argument("--random", action="store_true", help="random weights, no supervised learning")
    tiny.set_defaults(command=_tiny_model)
    return parser


def _add_ledger(ledger: argparse.ArgumentParser) -> None:
    actions = ledger.add_subparsers(required=True, metavar="ACTION")
    checking = actions.add_parser("check", help="whether a run is what it says it is", allow_abbrev=False)
    checking.add_argument("run", type=Path)
    checking.add_argument("--json", action="store_true", help="print the findings as JSON")
    checking.set_defaults(command=_ledger_check)
    repair = actions.add_parser("repair", help="save what can be saved of a damaged ledger", allow_abbrev=False)
    repair.add_argument("run", type=Path)
    repair.add_argument("--output", type=Path, metavar="FILE", help="a new ledger; the run's own is left in place")
    repair.set_defaults(command=_ledger_repair)
    prune = actions.add_parser("prune", help="forget what old groups hold, and free its space", allow_abbrev=False)
    prune.add_argument("run", type=Path)
    prune.add_argument("--keep-steps", type=int, required=True, metavar="N", help="keep groups of the last N steps")
    prune.set_defaults(command=_ledger_prune)


def _train(known: argparse.Namespace, overrides: list[str]) -> int:
    from driftproof.report.display import RunConsole, open_display
    from driftproof.runtime.preflight import preflight
    from driftproof.runtime.resources import resolve
    from driftproof.runtime.train import resume, start

    if (known.recipe is None) == (known.resume is None):
        raise ConfigError("give a recipe to start a run, or --resume RUN to go on with one")
    config = load_config(known.recipe, overrides) if known.recipe else _resumed_config(known.resume, overrides)
    if known.dry_run:
        preflight(config)
        print(resolve(config).to_toml(), end="")
        return 0
    _quiet_libraries()
    console = RunConsole()
    display = open_display(console)
    try:
        directory = resume(known.resume, config, display) if known.resume else start(config, display)
    finally:
        display.close()
    _show_result(console, directory)
    return 0


def _resumed_config(run: Path, overrides: list[str]) -> Config:
    recipe = run / "config.toml"
    if not recipe.is_file():
        raise ConfigError(f"{run} is not a run: it has no config.toml")
    return load_config(recipe, overrides, written=True)


def _show_result(console: Console, directory: RunDirectory) -> None:
    from driftproof.errors import RunError
    from driftproof.ledger.reader import LedgerReader
    from driftproof.report.picture import draw
    from driftproof.report.summary import summarize, write_summary
    from driftproof.report.tables import before_after_table, events_table
    from driftproof.run import LATEST

    model, picture = directory.snapshots / LATEST, str(directory.picture)
    with LedgerReader(directory.ledger) as ledger:
        summary = summarize(ledger, model)
        try:
            write_summary(directory.summary, summary)
            draw(ledger, directory.picture)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise RunError(
                    f"summary and picture of {directory.path} cannot be written: {error.strerror}; nothing of the run "
                    f"is lost: make space, and: driftproof report {directory.path}"
                ) from error
            picture = f"none: {error.strerror}"
        console.print(before_after_table(summary))
        if events := ledger.events():
            console.print(events_table(events))
    for line in (
        f"groups   {summary.groups_committed} committed, {summary.groups_trained} trained; "
        f"{summary.groups_of_equal_reward} of {summary.groups_trained} groups had equal rewards",
        f"picture  {picture}",
        f"model    {model.resolve()}",
        f"next     driftproof groups {directory.path}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _eval(known: argparse.Namespace, overrides: list[str]) -> int:
    from contextlib import closing

    from driftproof.evaluation.heldout import evaluate
    from driftproof.runtime.build import make_evaluation_engine, make_sampling, make_task, make_verifier
    from driftproof.runtime.resources import evaluation_threads, limit_threads
    from driftproof.tasks.codec import Codec
    from driftproof.weights.models import inspect_model

    _quiet_libraries()
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
    table = Table(title=f"{_writer(config)} on {task.name}, {result.prompts} held-out prompts")
    for column in (
        "greedy",
        f"sampled, temperature {config.sampling.temperature}, mean of {result.samples}",
        "unverified",
    ):
        table.add_column(column, justify="right")
    table.add_row(f"{result.greedy:.3f}", f"{result.sampled:.3f} ± {result.sampled_error:.3f}", str(result.unverified))
    Console().print(table)
    return 0


def _writer(config: Config) -> str:
    """Whose responses are evaluated: a server's are those of its weights, not of the model directory's."""
    return ", ".join(config.engine.url) or str(config.model.path)


def _eval_benchmarks(config: Config, known: argparse.Namespace) -> int:
    import json

    from driftproof.runtime.evaluation import score_benchmarks

    output: Path = known.output or Path("evals") / known.model.resolve().name
    console = Console()
    table = Table(title=f"{_writer(config)}, {config.evaluation.samples} responses a problem, 95% intervals")
    for column in ("benchmark", "problems", "mean@k", "pass@k", "unverified", "failed"):
        table.add_column(column)
    found = []

    def progress(name: str, done: int, of: int) -> None:
        if console.is_terminal or done == of:
            console.print(f"{name}: {done} of {of} problems", end="\n" if done == of else "\r", highlight=False)

    for score in score_benchmarks(config, known.benchmarks.split(","), known.data, output, progress):
        k, passed = max(score.passed.items())
        mean, best = (f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in (score.mean, passed))
        row = (score.name, str(score.problems), f"@{score.samples} {mean}", f"@{k} {best}")
        table.add_row(*row, str(score.unverified), str(score.failed))
        if score.failed:
            line = f"{score.name}: {score.failed} problems failed, the same command tries them again; {score.failure}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        found.append(score.to_json())
    results = output / "results.json"
    results.write_text(json.dumps(found, indent=2))
    console.print(table)
    console.print(str(results), markup=False, highlight=False, soft_wrap=True)
    return 1 if any(score["failed"] for score in found) else 0


def _lab(known: argparse.Namespace, settings: list[str]) -> int:
    from driftproof.lab.grid import planned_cells
    from driftproof.lab.progress import GridProgress
    from driftproof.lab.report import check_store
    from driftproof.lab.runner import check_grid, read_results, run_grid

    if known.recipe == Path("report"):
        return _lab_report(known.directory, settings)
    if known.directory is not None:
        raise ConfigError(f"unexpected argument {known.directory}; a grid is drawn again by: driftproof lab report DIR")
    _quiet_libraries()
    check_store()
    config = load_config(known.recipe, settings, LabConfig)
    directory = config.lab.directory or Path("labs") / config.run.name
    check_grid(config)
    found = read_results(config, directory)
    if known.dry_run:
        _show_plan(config, directory, found)
        return 0
    console = Console()
    progress = GridProgress(console, len(found))
    try:
        run_grid(config, directory, progress)
    except KeyboardInterrupt:
        progress.close()
        done, total = len(read_results(config, directory)), len(planned_cells(config))
        console.print(f"stopped: {done} of {total} runs are done; the same command goes on", highlight=False)
        raise
    finally:
        progress.close()
    _show_lab(console, config, directory)
    return 0


def _lab_report(directory: Path | None, settings: list[str]) -> int:
    from driftproof.lab.report import check_store

    if directory is None or settings:
        raise ConfigError("give the directory of a grid and nothing else: driftproof lab report DIRECTORY")
    recipe = directory / "config.toml"
    if not recipe.is_file():
        raise ConfigError(f"{directory} is not a grid: it has no config.toml")
    check_store()
    _show_lab(Console(), load_config(recipe, [], LabConfig, written=True), directory)
    return 0


def _show_lab(console: Console, config: LabConfig, directory: Path) -> None:
    from driftproof.lab.report import write_report
    from driftproof.lab.runner import read_results
    from driftproof.lab.summary import missing_cells, summarize
    from driftproof.lab.tables import missing_lines, result_table, views_of

    results = read_results(config, directory)
    files = write_report(config, results, directory)
    summaries = summarize(results)
    for view in views_of(summaries):
        console.print(result_table(config, view, [summary for summary in summaries if summary.view == view]))
    for line in (*missing_lines(config, missing_cells(config, results)), *map(str, files)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_plan(config: LabConfig, directory: Path, found: Sequence[Result]) -> None:
    from driftproof.lab.summary import missing_cells

    missing = missing_cells(config, found)
    for cell in missing:
        print(cell.key if cell.lr else cell.key.replace("lr0.0", "lr-of-the-sweep"))
    print(f"{len(missing)} runs to be made, {len(found)} there already, in {directory}")


def _groups(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.ledger.reader import LedgerReader
    from driftproof.report.tables import groups_table
    from driftproof.tasks.codec import Codec

    config = _resumed_config(known.run, [])
    codec = Codec(config.model.path)
    with LedgerReader(known.run / "ledger.sqlite") as ledger:
        Console().print(groups_table(ledger.records(), codec.decode, by=known.by, limit=known.limit))
    return 0


def _ledger_check(known: argparse.Namespace, _: list[str]) -> int:
    import json
    from dataclasses import asdict

    from driftproof.ledger.maintenance.check import check_run

    found = check_run(known.run)
    if known.json:
        print(json.dumps(asdict(found), indent=2))
        return 1 if found.findings else 0
    for line in found.findings or [f"{found.groups:,} groups, {found.steps:,} steps: nothing is wrong"]:
        print(line)
    return 1 if found.findings else 0


def _ledger_repair(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.ledger.maintenance.repair import repair_run
    from driftproof.ledger.records import Plan

    def plan_anew() -> Plan:
        from driftproof.runtime.preflight import preflight

        return preflight(_resumed_config(known.run, []))

    done = repair_run(known.run, known.output, plan_anew)
    if done is None:
        print(f"nothing is wrong with the ledger of {known.run}; it is left alone")
        return 0
    for line in done.lines():
        print(line)
    return 0


def _ledger_prune(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.ledger.maintenance.prune import prune_run

    if known.keep_steps < 0:
        raise ConfigError(f"--keep-steps is {known.keep_steps}; it must be 0 or more")
    done = prune_run(known.run, known.keep_steps)
    print(f"{done.groups:,} groups pruned, up to step {done.step:,} of {done.steps:,}; {done.freed:,} bytes freed")
    return 0


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


def _inbox(known: argparse.Namespace, _: list[str]) -> int:
    try:
        from driftproof.inbox.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise ConfigError("the inbox needs its packages: pip install 'driftproof[inbox]'") from error
    from driftproof.runtime.inbox import open_inbox

    _quiet_libraries()
    serve(
        open_inbox(known.run),
        known.run,
        host=known.host,
        port=known.port,
        token_environment=known.token_env,
        max_megabytes=known.max_megabytes,
        say=lambda line: print(line, flush=True),
    )
    return 0


def _report(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.run import RunDirectory

    _resumed_config(known.run, [])
    _show_result(Console(), RunDirectory(path=known.run))
    return 0


def _check(known: argparse.Namespace, settings: list[str]) -> int:
    if known.recipe is None and settings:
        raise ConfigError("settings belong to a recipe: driftproof check RECIPE --section.key value")
    _show_machine()
    return 0 if known.recipe is None else _check_recipe(load_config(known.recipe, settings))


def _check_recipe(config: Config) -> int:
    """What a recipe needs, beside what is here; 1 if something is lacking."""
    from driftproof.errors import EngineError
    from driftproof.runtime.preflight import preflight
    from driftproof.runtime.resources import requirements

    _quiet_libraries()
    table = Table("process", "device", "needs", "has", "of that", title="memory, GiB")
    found = requirements(config)
    for need in found:
        parts = ", ".join(f"{name} {size / 2**30:.2g}" for name, size in need.parts.items())
        style = "" if need.fits else "red"
        sizes = [f"{size / 2**30:.2f}" for size in (need.needed, need.available)]
        table.add_row(need.process, need.device, Text(sizes[0], style=style), sizes[1], Text(parts))
    console = Console()
    console.print(table)
    lacking = [f"{need.process} needs more memory than {need.device} has" for need in found if not need.fits]
    for url in config.engine.url:
        lacking += _show_server(console, url, config)
    try:
        preflight(config)
    except (ValueError, EngineError) as error:
        if str(error) not in lacking:
            lacking.append(str(error))
    for line in lacking or ["this recipe can be run here"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if lacking else 0


def _show_server(console: Console, url: str, config: Config) -> list[str]:
    """Print what a server can do; what is wrong with it."""
    from driftproof.engines.openai.probe import probe
    from driftproof.errors import EngineError

    try:
        facts = probe(url, model=config.engine.model, api_key_variable=config.engine.api_key_variable)
    except EngineError as error:
        return [str(error)]
    text = (
        f"{facts.url}: {facts.dialect} {facts.version}, model {facts.model}, token ids {facts.token_ids}, "
        f"log-probs {facts.logprobs}, context {facts.max_length}"
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return []


def _show_machine() -> None:
    import os
    import shutil

    import torch

    table = Table("what", "found", "for", title="driftproof check")

    def add(what: str, found: str, use: str) -> None:
        table.add_row(what, Text(found), Text(use))

    add("cores", str(len(os.sched_getaffinity(0))), "one for the learner, one for each rollout worker")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    add("GPU", gpu, "larger models; everything runs without one")
    add("free disk", f"{shutil.disk_usage('.').free / 1e9:.0f} GB", "snapshots and checkpoints")
    for package, use in (
        ("torch", "required"),
        ("transformers", "required"),
        ("pyarrow", "lab: pip install 'driftproof[lab]'"),
        ("fastapi", "inbox: pip install 'driftproof[inbox]'"),
        ("math-verify", "task verifier 'math': pip install 'driftproof[math]'"),
        ("wandb", "tracking.wandb: pip install 'driftproof[wandb]'"),
        ("trackio", "tracking.trackio: pip install 'driftproof[trackio]'"),
    ):
        add(package, _version(package), use)
    Console().print(table)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _tiny_model(known: argparse.Namespace, settings: list[str]) -> int:
    from driftproof.runtime.resources import limit_threads
    from driftproof.tiny.model import make_tiny_model

    task_fields = {}
    for section, key, value in parse_overrides(settings):
        if section != "task" or key == "name":
            raise ConfigError(f"unknown setting '{section}.{key}'; tiny-model takes --task NAME and --task.FIELD VALUE")
        task_fields[key] = value
    _quiet_libraries()
    # One thread: as fast on batches this small, and the same model on every machine.
    limit_threads(1)
    console = Console()

    def progress(step: int, accuracy: float) -> None:
        console.print(f"step {step:4d}  sampled accuracy {accuracy:.3f}", highlight=False)

    report = make_tiny_model(
        known.directory,
        architecture=known.architecture,
        tokenizer=known.tokenizer,
        task=known.task,
        task_fields=task_fields,
        accuracy=known.accuracy,
        train=not known.random,
        seed=known.seed,
        progress=progress,
    )
    console.print(
        f"{report.path}: {report.parameters:,} parameters, {report.steps} steps in {report.seconds:.0f} s, accuracy "
        f"{report.sampled_accuracy:.3f} sampled, {report.greedy_accuracy:.3f} greedy",
        markup=False,
        highlight=False,
    )
    return 0


def _quiet_libraries() -> None:
    from driftproof.runtime.resources import quiet_libraries

    quiet_libraries()
