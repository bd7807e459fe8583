"""`driftproof tiny-model`: a small base policy, made on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from driftproof.cli.commands import Commands, command
from driftproof.config import parse_overrides
from driftproof.errors import ConfigError


def add(commands: Commands) -> None:
    tiny = command(commands, "tiny-model", _tiny_model, "make a small base policy on this machine", settings=True)
    tiny.add_argument("directory", type=Path)
    tiny.add_argument("--architecture", choices=("qwen3", "llama"), default="qwen3")
    tiny.add_argument("--tokenizer", choices=("characters", "bytes"), default="characters")
    tiny.add_argument("--task", default="arithmetic", help="what it learns; its fields on top: --task.field value")
    tiny.add_argument("--accuracy", type=float, default=0.33, help="sampled accuracy at which it stops learning")
    tiny.add_argument("--seed", type=int, default=0)
    tiny.add_argument("--random", action="store_true", help="random weights, no supervised learning")


def _tiny_model(known: argparse.Namespace, settings: list[str]) -> int:
    from driftproof.runtime.resources import limit_threads, quiet_libraries
    from driftproof.tiny.model import make_tiny_model

    task_fields = {}
    for section, key, value in parse_overrides(settings):
        if section != "task" or key == "name":
            raise ConfigError(f"unknown setting '{section}.{key}'; tiny-model takes --task NAME and --task.FIELD VALUE")
        task_fields[key] = value
    quiet_libraries()
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
