"""`driftproof check`: this machine, beside it the needs of a recipe; `driftproof tiny-model`: a base policy for it."""

import os
import shutil
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from driftproof.cli.commands import Commands, command, located, print_lines, whole_number
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError, EngineError, InputError, ModelError
from driftproof.values import parse_overrides

PACKAGES = {
    "torch": "required",
    "transformers": "required",
    "pyarrow": "lab: pip install 'driftproof[lab]'",
    "fastapi": "inbox: pip install 'driftproof[inbox]'",
    "math-verify": "task verifier 'math': pip install 'driftproof[math]'",
    "wandb": "tracking.wandb: pip install 'driftproof[wandb]'",
    "trackio": "tracking.trackio: pip install 'driftproof[trackio]'",
}


def add(commands: Commands) -> None:
    check = command(commands, "check", _check, "what this machine can run, and what is missing", settings=True)
    check.add_argument("recipe", type=Path, nargs="?", help="whose needs are set beside what is here")
    tiny = command(commands, "tiny-model", _tiny_model, "make a small base policy on this machine", settings=True)
    tiny.add_argument("directory", type=Path)
    tiny.add_argument("--architecture", choices=("qwen3", "llama"), default="qwen3")
    tiny.add_argument("--tokenizer", choices=("characters", "bytes"), default="characters")
    tiny.add_argument("--task", default="arithmetic", help="what it learns; its fields on top: --task.field value")
    tiny.add_argument("--accuracy", type=float, default=0.33, help="sampled accuracy at which it stops learning")
    tiny.add_argument("--seed", type=whole_number(0), default=0)
    tiny.add_argument("--random", action="store_true", help="random weights, no supervised learning")


def _check(known: Namespace) -> int:
    if known.recipe is None and known.settings:
        raise ConfigError("settings belong to a recipe: driftproof check RECIPE --section.key value")
    console = Console()
    console.print(_machine_table())
    return 0 if known.recipe is None else _check_recipe(console, located(load_config(known.recipe, known.settings)))


def _machine_table() -> Table:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    table = Table("what", "found", "for", title="driftproof check")
    for row in [
        ("cores", str(len(os.sched_getaffinity(0))), "one for the learner, one for each rollout worker"),
        ("GPU", gpu, "larger models; everything runs without one"),
        ("free disk", f"{shutil.disk_usage('.').free / 1e9:.0f} GB", "snapshots and checkpoints"),
        *((package, _version(package), use) for package, use in PACKAGES.items()),
    ]:
        table.add_row(*map(Text, row))
    return table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _check_recipe(console: Console, config: Config) -> int:
    """Show the needs of a recipe beside what is here; 1 if something is lacking."""
    from driftproof.engines.openai.probe import probe
    from driftproof.runtime.preflight import longest_texts, preflight
    from driftproof.runtime.resources import lacking_memory, quiet_libraries, requirements

    quiet_libraries()
    lacking, told = [], list[str]()
    try:
        prompt_tokens, response_tokens = longest_texts(config)
    except InputError as error:
        prompt_tokens, response_tokens = 0, config.sampling.max_tokens
        lacking.append(f"prompts cannot be counted: {error}")
    try:
        needs = requirements(config, prompt_tokens, response_tokens)
    except ModelError as error:
        needs = []
        lacking.append(str(error))
    title = f"memory, GiB; prompts of up to {prompt_tokens:,} tokens and responses of {response_tokens:,}"
    table = Table("process", "device", "needs", "has", "of that", title=title)
    for need in needs:
        parts = ", ".join(f"{name} {_gibibytes(size)}" for name, size in need.parts.items())
        needed = Text(f"{need.needed / 2**30:.2f}", style="" if need.fits else "red")
        several = f"{need.process}, of {need.count}" if need.count > 1 else need.process
        table.add_row(several, need.device, needed, f"{need.available / 2**30:.2f}", Text(parts))
    lacking += lacking_memory(needs)
    console.print(table)
    for url in config.engine.url:
        try:
            facts = probe(url, model=config.engine.model, api_key_variable=config.engine.api_key_variable)
        except EngineError as error:
            lacking.append(str(error))
            continue
        print_lines(
            console,
            f"{facts.url}: {facts.dialect} {facts.version}, model {facts.model}, token ids {facts.token_ids}, "
            f"log-probs {facts.logprobs}, context {facts.max_length}",
        )
    try:
        preflight(config, lambda text: told.append(f"warning: {text}"), told.append)
    except (ValueError, EngineError) as error:
        # Whatever keeps prompts from being counted is told in full here.
        lacking = [line for line in lacking if not line.endswith(str(error))]
        lacking.append(str(error))
    print_lines(console, *told, *lacking or ["this recipe can be run here"])
    return 1 if lacking else 0


def _gibibytes(size: int) -> str:
    gibibytes = size / 2**30
    return f"{gibibytes:,.0f}" if gibibytes >= 100 else f"{gibibytes:.2g}"


def _tiny_model(known: Namespace) -> None:
    from driftproof.runtime.resources import limit_threads, quiet_libraries
    from driftproof.tiny.model import make_tiny_model

    task_fields = {}
    for section, key, value in parse_overrides(known.settings):
        if section != "task" or key == "name":
            raise ConfigError(f"unknown setting '{section}.{key}'; tiny-model takes --task NAME and --task.FIELD VALUE")
        task_fields[key] = value
    quiet_libraries()
    # One thread: as fast on batches this small, and the same model on every machine.
    limit_threads(1)
    console = Console()
    report = make_tiny_model(
        known.directory,
        architecture=known.architecture,
        tokenizer=known.tokenizer,
        task=known.task,
        task_fields=task_fields,
        accuracy=known.accuracy,
        train=not known.random,
        seed=known.seed,
        progress=lambda step, accuracy: print_lines(console, f"step {step:4d}  sampled accuracy {accuracy:.3f}"),
    )
    print_lines(
        console,
        f"{report.path}: {report.parameters:,} parameters, {report.steps} steps in {report.seconds:.0f} s, accuracy "
        f"{report.sampled_accuracy:.3f} sampled, {report.greedy_accuracy:.3f} greedy",
    )
