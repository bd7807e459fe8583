"""`driftproof train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from driftproof.cli.commands import Commands, command
from driftproof.cli.runs import show_result
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError


def add(commands: Commands) -> None:
    train = command(commands, "train", _train, "post-train a model as a recipe says", settings=True)
    train.add_argument("recipe", type=Path, nargs="?", help="a TOML recipe; settings on top: --section.key value")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this directory")
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved configuration, stop"
    )


def _train(known: argparse.Namespace, overrides: list[str]) -> int:
    from driftproof.report.display import RunConsole, open_display
    from driftproof.runtime.preflight import preflight
    from driftproof.runtime.resources import quiet_libraries, resolve
    from driftproof.runtime.train import resume, start

    if (known.recipe is None) == (known.resume is None):
        raise ConfigError("give a recipe to start a run, or --resume RUN to go on with one")
    config = load_config(known.recipe, overrides) if known.recipe else Config.written_in(known.resume, overrides)
    if known.dry_run:
        preflight(config)
        print(resolve(config).to_toml(), end="")
        return 0
    quiet_libraries()
    console = RunConsole()
    display = open_display(console)
    try:
        directory = resume(known.resume, config, display) if known.resume else start(config, display)
    finally:
        display.close()
    show_result(console, directory)
    return 0
