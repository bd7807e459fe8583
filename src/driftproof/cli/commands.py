"""Parts that every group of commands is made of."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from rich.console import Console

from driftproof.errors import ConfigError
from driftproof.text import printable_lines

if TYPE_CHECKING:
    from driftproof.config import Config

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""A place for commands, or for the actions of a command."""
Run = Callable[[argparse.Namespace], int | None]
"""A command: from its arguments, `settings` among them, to an exit code (None: 0)."""
AnyConfig = TypeVar("AnyConfig", bound="Config")


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.format_usage().rstrip()}")


def command(commands: Commands, name: str, run: Run, help: str, *, settings: bool = False) -> Parser:
    """Add a command; without `settings` it takes no `--section.key value`."""
    parser = commands.add_parser(name, help=help, allow_abbrev=False)
    parser.set_defaults(run_command=run, takes_settings=settings, parser=parser)
    return parser


def whole_number(least: int, most: int = 10**8) -> Callable[[str], int]:
    """The type of an option that is a whole number within bounds, both allowed."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return number

    return read


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are, neither marked up nor broken; control characters in them are escaped."""
    for line in lines:
        console.print(printable_lines(line), markup=False, highlight=False, soft_wrap=True)


def located(config: AnyConfig) -> AnyConfig:
    """A configuration whose models are directories: those named as on the hub are looked up there or in its cache.

    Raises:
        ModelError: the hub has no such model, or cannot be reached.
    """
    from driftproof.weights.hub import locate, origin_of

    model = locate(config.model)
    given = (config.model.path, config.model.reference)
    for found in {path: None for path in (model.path, model.reference) if path is not None and path not in given}:
        if origin := origin_of(found):
            print(f"{origin[0]} is commit {origin[1]} of the hub, in {found}", file=sys.stderr)
    return config.model_copy(update={"model": model})
