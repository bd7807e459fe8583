"""`driftproof`: train, groups, report, inbox, ledger, eval, verify, lab, check, tiny-model.

Guarantees: bad input ends with one sentence on stderr and exit code 2, a run that ended or was stopped early with 1;
only errors in driftproof itself show a traceback.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import driftproof
from driftproof.cli import evaluate, lab, machine, runs
from driftproof.errors import DriftproofError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # Objectives of one's own are found in the working directory, however driftproof was started.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    words, settings = split_settings(sys.argv[1:] if arguments is None else arguments)
    # `lab` runs a grid unless it is told otherwise.
    if words[:1] == ["lab"] and not {"run", "report", "-h", "--help"} & set(words[1:2]):
        words.insert(1, "run")
    parser = _parser()
    known = parser.parse_args(words, argparse.Namespace(settings=settings))
    if settings and not known.takes_settings:
        parser.error(f"settings belong to train, eval, lab, check and tiny-model: {' '.join(settings)}")
    try:
        return known.run_command(known) or 0
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
    rest = iter(arguments)
    for word in rest:
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and "." in name):
            words.append(word)
        else:
            settings += [word] if equals else [word, *islice(rest, 1)]
    return words, settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="driftproof", description=driftproof.__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (runs, evaluate, lab, machine):
        group.add(commands)
    return parser
