"""`driftproof`: train, eval, verify, lab, groups, report, ledger, inbox, check, tiny-model.

Guarantees: bad input ends with one sentence on stderr and exit code 2, a run that ended or was stopped early with 1;
only errors in driftproof itself show a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import driftproof
from driftproof.cli import check, evaluate, inbox, lab, ledger, models, runs, train
from driftproof.errors import DriftproofError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # Objectives of one's own are found in the working directory, however driftproof was started.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    words, settings = split_settings(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    known = parser.parse_args(_with_action(words))
    if settings and not known.takes_settings:
        parser.error(f"settings belong to train, eval, lab, check and tiny-model: {' '.join(settings)}")
    try:
        code: int = known.run_command(known, settings)
        return code
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


def _with_action(words: list[str]) -> list[str]:
    """The words with the action of `lab`, which runs a grid unless it is told otherwise."""
    if words[:1] != ["lab"] or {"run", "report", "-h", "--help"} & set(words[1:2]):
        return words
    return ["lab", "run", *words[1:]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="driftproof", description=driftproof.__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (train, evaluate, lab, runs, ledger, inbox, check, models):
        group.add(commands)
    return parser
