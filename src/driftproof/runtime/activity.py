"""The activity of a process, in a small file that is written in place: readable also while the process hangs."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_BYTES = 160
"""Length of the file; a record that is always as long needs no space on a full disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """The phase that a process is in."""

    phase: str
    """In the third person: "waits for groups"."""
    since: float
    """Start of the phase, in this host's monotonic seconds."""

    def described(self, now: float) -> str:
        return f"{self.phase} (for {now - self.since:.0f} s)"

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The activity that a file tells of; None where there is none yet."""
        try:
            since, _, phase = path.read_text(errors="replace").partition(" ")
            return cls(phase=phase.strip(), since=float(since))
        except (OSError, ValueError):
            return None


class ActivityFile:
    """The activity of this process, for others to read: call it with the phase that begins; it never fails."""

    def __init__(self, path: Path) -> None:
        self._phase = ""
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def __call__(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        record = f"{time.monotonic()} {phase}".encode()[: _BYTES - 1].ljust(_BYTES - 1) + b"\n"
        with suppress(OSError):
            os.pwrite(self._descriptor, record, 0)
