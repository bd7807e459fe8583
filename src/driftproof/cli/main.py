"""`driftproof`: train, groups, report, inbox, ledger, eval, verify, lab, check, tiny-model.

Guarantees: bad input ends with one sentence on stderr and exit code 2, a run that ended or was stopped early with 1,
Ctrl-C before a run has begun with 130 and not a word; only errors in driftproof itself show a traceback. Whatever the
locale, files and names are UTF-8.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from driftproof import __version__
from driftproof.errors import ConfigError, DriftproofError, command_line, unknown_name
from driftproof.slips import meant_command, meant_settings

if TYPE_CHECKING:
    from driftproof.cli.commands import Parser

TAKE_SETTINGS = "train, eval, lab, check and tiny-model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    as_program = arguments is None
    if as_program:
        _in_utf8()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        # One that came while a text was executed (a dataclass is made of one) would make Python end by the signal: it
        # remembers until another text is executed.
        exec("")
        code = 130
    except BrokenPipeError:
        code = _nobody_reads(as_program)
    except DriftproofError as error:
        print(f"driftproof: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        # Whichever room met it: a path that is too long, a directory that is a file, a disk that is full.
        if error.errno is None or error.strerror is None:
            raise
        what = "a file, or what is printed," if error.filename is None else repr(str(error.filename))
        print(f"driftproof: {what} cannot be read or written: {error.strerror}", file=sys.stderr)
        code = 2
    if as_program:
        # Nothing is left to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def _in_utf8() -> None:
    """Run the same command again in Python's UTF-8 mode, where the locale has file names and texts in another code."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _nobody_reads(as_program: bool) -> int:
    """The reader of what is printed has gone, like `head`; what is left to print goes nowhere."""
    if as_program:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _run(arguments: list[str]) -> int:
    # Imported here, where Ctrl-C is met.
    from argparse import Namespace

    if wrong := next((argument for argument in arguments if "\0" in argument), None):
        raise ConfigError(f"{wrong!r} has a NUL character, which no path and no setting can have")
    with suppress(FileNotFoundError):
        # Objectives of one's own are found in the working directory, however driftproof was started.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
    words, settings = split_settings(arguments)
    # `lab` runs a grid unless it is told otherwise.
    if words[:1] == ["lab"] and not {"run", "report", "-h", "--help"} & set(words[1:2]):
        words.insert(1, "run")
    parser, commands = _parser()
    _check_command(words, "command", commands)
    if words[:1] == ["ledger"]:
        _check_command(words[1:], "action of ledger", ("check", "repair", "prune"))
    known, unknown = parser.parse_known_args(words, Namespace(settings=settings))
    if unknown:
        raise ConfigError(_unexpected(unknown, known.parser, known.takes_settings))
    if settings and not known.takes_settings:
        raise ConfigError(f"settings belong to {TAKE_SETTINGS}: {' '.join(settings)}")
    return known.run_command(known) or 0


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of the command, and the `--section.key value` settings among them; a value begins with no `--`."""
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
        if not equals and rest and not rest[0].startswith("--"):
            settings.append(rest.pop(0))
    return words, settings


def _check_command(words: Sequence[str], what: str, valid: Iterable[str]) -> None:
    """Refuse a first word that is no command, with the one that was meant."""
    word = next(iter(words), "-")
    if word.startswith("-") or word in valid:
        return
    message, meant = unknown_name(what, word, valid), meant_command(word, valid) if what == "command" else ""
    if meant and "did you mean" not in message:
        message = message.replace("; valid", f"; did you mean 'driftproof {meant}'? valid", 1)
    raise ConfigError(message)


def _unexpected(words: Sequence[str], parser: Parser, takes_settings: bool) -> str:
    """The message for words that a command does not take, with the options or settings that were meant."""
    option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if option is None:
        # Dashes that an editor has made of two hyphens, or a setting without them.
        bare = words[0].lstrip("–—").partition("=")[0]
        meant = [name for name in _settings(parser) if bare != words[0] or name == bare] if takes_settings else []
        how = f"; did you mean --{bare}? Settings are typed with two hyphens" if meant else ""
        return f"unrecognized arguments: {' '.join(words)}{how}\n{parser.format_usage().rstrip()}"
    options = [name for action in parser._actions for name in action.option_strings]
    if option in options:
        return f"{option} stands behind its command: {command_line(*parser.prog.split(), option)}"
    settings = _settings(parser) if takes_settings else []
    within = [f"--{name}" for name in settings if name.startswith(f"{option.lstrip('-')}.")]
    meant = [f"--{name}" for name in meant_settings(option.lstrip("-"), settings)]
    if within and not meant:
        return f"{option} is a section; its settings are {', '.join(within)}"
    near = difflib.get_close_matches("--" + option.lstrip("-").replace("_", "-"), options, n=1, cutoff=0.8)
    suggestion = f"; did you mean {' or '.join(near or meant)}?" if near or meant else ";"
    valid = " and settings, --section.key VALUE" if takes_settings else ""
    return f"unknown option {option!r}{suggestion} valid: {', '.join(options)}{valid}"


def _settings(parser: Parser) -> list[str]:
    from driftproof.config import Config, settings_of
    from driftproof.lab.settings import LabConfig

    settings = settings_of(LabConfig if " lab" in parser.prog else Config)
    return [name for name in settings if " tiny-model" not in parser.prog]


def _parser() -> tuple[Parser, list[str]]:
    """The parser, and the names of all commands."""
    import driftproof
    from driftproof.cli import evaluate, lab, machine, runs
    from driftproof.cli.commands import Parser

    parser = Parser(prog="driftproof", description=driftproof.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"driftproof {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (runs, evaluate, lab, machine):
        group.add(commands)
    return parser, list(commands.choices)
