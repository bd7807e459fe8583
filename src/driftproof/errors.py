"""Every error that driftproof raises on purpose: one base with an exit code, and one kind for each thing to mend.

A command prints the message of a `DriftproofError` as it is and ends with its `exit_code`; any other exception is a
fault in driftproof and shows a traceback.
"""

import difflib
import shlex
from collections.abc import Iterable

from driftproof.text import printable_lines


class DriftproofError(Exception):
    """Base of all of driftproof's errors; the message says what was wrong, where, what is valid and what to do.

    What it quotes of servers, templates and files is harmless wherever the message is shown.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class InputError(DriftproofError, ValueError):
    """Bad input, refused before anything was changed."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe, setting, option or package that does not allow what is asked for."""


class UnavailableError(InputError):
    """A directory that is no run, a run that another driftproof is working on, or one that cannot be written."""


class ModelError(InputError):
    """A model directory that cannot be used."""


class CodecError(InputError):
    """A text that the tokenizer cannot turn into tokens."""


class TaskError(InputError):
    """A task or data file that cannot be loaded; the message names file, line and what is valid."""


class VerifierError(InputError):
    """A verifier that cannot be built or go on."""


class ObjectiveError(InputError):
    """An objective that does not exist, or that is given fields or inputs it cannot take."""


class GroupError(InputError):
    """A group that must not enter the ledger; the message names the response and what is wrong with it."""


class EngineError(DriftproofError, RuntimeError):
    """An engine cannot do what it is asked; the message says what it can do and what to change."""


class LedgerError(DriftproofError, RuntimeError):
    """The ledger cannot be opened or used as asked."""


class DamageError(DriftproofError, ValueError):
    """A stored row or file that does not hold what was written."""


class CheckpointError(DriftproofError, RuntimeError):
    """A checkpoint that cannot be loaded."""


class RunError(DriftproofError, RuntimeError):
    """A run, or a grid of the lab, that ended before its time; the message says why and how to go on."""


class StallError(RunError):
    """The learner waited too long for groups."""


class DivergenceError(RunError):
    """Training cannot go on as it is set up: losses, gradients or weights are not finite."""


class StaleInboxError(RunError):
    """The run was resumed under other settings than those with which this inbox was started."""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """A message like `unknown task 'arithmetics'; did you mean 'arithmetic'? valid: arithmetic, gsm8k`."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    suggestion = f" did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r};{suggestion} valid: {', '.join(names)}"


def command_line(*words: object) -> str:
    """A command as it is typed into a shell, whatever its paths have in them: `driftproof groups 'runs/my run'`."""
    return shlex.join(str(word) for word in words)
