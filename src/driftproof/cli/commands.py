"""Parts of a command line that every group of commands is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""A place for commands, or for the actions of a command."""
Run = Callable[[argparse.Namespace, list[str]], int]
"""A command: from its arguments and its `--section.key value` settings to an exit code."""


def command(commands: Commands, name: str, run: Run, help: str, *, settings: bool = False) -> argparse.ArgumentParser:
    """Add a command; without `settings` it takes no `--section.key value`."""
    parser = commands.add_parser(name, help=help, allow_abbrev=False)
    parser.set_defaults(run_command=run, takes_settings=settings)
    return parser
