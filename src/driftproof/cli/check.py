"""`driftproof check`: this machine, and the needs of a recipe beside it."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from driftproof.cli.commands import Commands, command
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError, EngineError


def add(commands: Commands) -> None:
    check = command(commands, "check", _check, "what this machine can run, and what is missing", settings=True)
    check.add_argument("recipe", type=Path, nargs="?", help="whose needs are set beside what is here")


def _check(known: argparse.Namespace, settings: list[str]) -> int:
    if known.recipe is None and settings:
        raise ConfigError("settings belong to a recipe: driftproof check RECIPE --section.key value")
    _show_machine()
    return 0 if known.recipe is None else _check_recipe(load_config(known.recipe, settings))


def _check_recipe(config: Config) -> int:
    """Show the needs of a recipe beside what is here; 1 if something is lacking."""
    from driftproof.runtime.preflight import preflight
    from driftproof.runtime.resources import quiet_libraries, requirements

    quiet_libraries()
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
