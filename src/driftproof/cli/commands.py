"""Parts that every group of commands is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from rich.console import Console

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""A place for commands, or for the actions of a command."""
Run = Callable[[argparse.Namespace], int | None]
"""A command: from its arguments, `settings` among them, to an exit code (None: 0)."""


def command(commands: Commands, name: str, run: Run, help: str, *, settings: bool = False) -> argparse.ArgumentParser:
    """Add a command; without `settings` it takes no `--section.key value`."""
    parser = commands.add_parser(name, help=help, allow_abbrev=False)
    parser.set_defaults(run_command=run, takes_settings=settings)
    return parser


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are, neither marked up nor broken."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
