"""A run's directory: the names in it, how files get there whole, and who may work on it.

Guarantees: whoever reads a file or step directory under its own name finds all of it or nothing; only one driftproof at
a time works on a run, with all its processes. No other module spells the name of a run's file.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from driftproof.errors import UnavailableError
from driftproof.faults import fault_points

LATEST = "latest"
"""The symbolic link among the snapshots that names the newest."""
LOCK = "lock"
"""The file that the command which works on a run, or begins one, has a lock on."""
PROCESSES_LOCK = "processes.lock"
"""The file that all processes of a run share a lock on as long as they live."""
ORPHAN_SECONDS = 150.0
"""How long to wait for processes whose command was killed: they end within two minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDirectory:
    """The places of a run's parts; snapshots and checkpoints lie in step directories."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def ledger_log(self) -> Path:
        return self.path / "ledger.sqlite-wal"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def skipped(self) -> Path:
        """Groups of updates that were not made."""
        return self.path / "skipped"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def picture(self) -> Path:
        return self.path / "report.png"

    @property
    def server_url(self) -> Path:
        """Address of the inference server that was launched for this run."""
        return self.path / "server-url"

    @property
    def inbox(self) -> Path:
        return self.path / "inbox.json"

    @property
    def inbox_token(self) -> Path:
        return self.path / "inbox.token"

    @property
    def inbox_lock(self) -> Path:
        return self.path / "inbox.lock"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def activity(self, process: str) -> Path:
        """File with the activity of a process, for whoever watches it."""
        return self.logs / f"{process}.activity"

    def stall(self, step: int) -> Path:
        """The stacks of all processes of a run that stood still at `step`."""
        return self.logs / f"stall-{step:08d}.txt"


def step_directory(directory: Path, step: int) -> Path:
    """The directory of the snapshot or checkpoint of a step."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a step directory is named after."""
    return int(path.name.removeprefix("step-"))


def step_directories(directory: Path) -> dict[int, Path]:
    """Complete step directories by their step, in order; whatever else lies there is not ours."""
    found = {path: re.fullmatch(r"step-(\d{8,})", path.name) for path in directory.glob("step-*") if path.is_dir()}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def partial_name(path: Path) -> Path:
    """The name that a file or directory bears until it is whole."""
    return path.with_name(f".partial-{path.name}")


@contextmanager
def written_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write a file to; it gets its own name once it is whole, and, if `durable`, on disk."""
    partial = partial_name(path)
    yield partial
    if durable:
        fsync(partial)
    partial.replace(path)


def rename_durably(partial: Path, path: Path) -> None:
    """Rename a finished directory into its place."""
    fsync(partial)
    partial.rename(path)
    fsync(path.parent)


def remove_at_once(path: Path) -> None:
    """Remove a directory; whoever looks, or kills us, never finds a part of it under its name."""
    partial = partial_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    path.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def fsync(path: Path) -> None:
    """Force a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with fault_points("disk fsync"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(run: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keep every other driftproof from working on a run; given back when this process dies, too.

    Processes of a driftproof that was killed are waited for, which `say` is told: they may be in the middle of a step.
    """
    ledger = RunDirectory(path=run).ledger
    if not ledger.is_file():
        raise UnavailableError(f"{run} is not a run: it has no {ledger.name}")
    with claimed(run):
        _wait_for_orphans(run, say)
        yield


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Keep every other driftproof off a directory, whatever is in it."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UnavailableError(f"run directory {run} cannot be written: {error.strerror}") from error
    try:
        if not taken(descriptor):
            raise UnavailableError(f"{run} is in use by another driftproof; wait for it, or stop it first")
        yield
    finally:
        os.close(descriptor)


def hold_run_lock(run: Path) -> None:
    """Keep everyone from working on a run until this process ends, however it does."""
    fcntl.flock(os.open(run / PROCESSES_LOCK, os.O_RDWR | os.O_CREAT, 0o644), fcntl.LOCK_SH)


def _wait_for_orphans(run: Path, say: Callable[[str], None]) -> None:
    deadline, told = time.monotonic() + ORPHAN_SECONDS, False
    try:
        opened = (run / PROCESSES_LOCK).open("a")
    except OSError as error:
        raise UnavailableError(f"run directory {run} cannot be written: {error.strerror}") from error
    with opened as shared:
        while not taken(shared.fileno()):
            if not told:
                say(f"waiting for processes of an earlier driftproof, which still work on {run}, to end")
                told = True
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"processes of an earlier driftproof still work on {run} after {ORPHAN_SECONDS:.0f} s (they hold "
                    f"its {PROCESSES_LOCK}); end them first"
                )
            time.sleep(0.05)


def taken(descriptor: int) -> bool:
    """Whether the lock of an open file, which is ours alone then, could be taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
