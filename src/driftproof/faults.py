"""Named places at which a run can be made to fail: before and after each durable write, and in the engine's work.

Guarantees: unless the environment variable DRIFTPROOF_FAULTS names a directory, a place does nothing; with it, each
planted fault is met by exactly one process, once.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

VARIABLE = "DRIFTPROOF_FAULTS"
Action = Literal["kill", "fail", "slow"]
"""Die at once (SIGKILL), raise what a broken disk would raise there, or stand still for `SLOW_SECONDS`."""
SLOW_SECONDS = 2.0
WRITES = (
    "ledger lease",
    "ledger commit",
    "ledger take",
    "ledger finish_step",
    "ledger make_durable",
    "ledger rewind",
    "snapshot write",
    "snapshot rename",
    "snapshot latest",
    "snapshot prune",
    "checkpoint write",
    "checkpoint rename",
    "checkpoint prune",
    "disk fsync",
)
ENGINE = "engine collect"
PLACES = (*(f"{when} {write}" for write in WRITES for when in ("before", "after")), ENGINE)

_directory = os.environ.get(VARIABLE)


def plant(directory: Path, place: str, action: Action) -> Path:
    """Let the next process that comes to `place` fail there; the file is gone once that has happened."""
    if place not in PLACES:
        raise ValueError(f"unknown place {place!r}; valid: {', '.join(PLACES)}")
    fault = directory / f"{place}.{action}"
    fault.touch()
    return fault


@contextmanager
def fault_points(write: str, error: type[Exception] = OSError) -> Iterator[None]:
    """The places before and after one of `WRITES`; `error` is what a failure of the disk would raise."""
    fault_point(f"before {write}", error)
    yield
    fault_point(f"after {write}", error)


def fault_point(place: str, error: type[Exception]) -> None:
    """Fail here if that is planted; `error` is what a failure of this place would be."""
    if _directory is None:
        return
    assert place in PLACES, place
    for action in get_args(Action):
        try:
            # Of all processes that come here, one removes the file.
            (Path(str(_directory)) / f"{place}.{action}").unlink()
        except FileNotFoundError:
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "fail":
            raise error(f"planted fault: {place}")
        else:
            time.sleep(SLOW_SECONDS)
