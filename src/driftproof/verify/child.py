"""The process in which reward functions run: `python -m driftproof.verify.child LIFELINE BYTES module:function ...`.

Speaks JSON, one value a line. It first writes `{"needs": [...], "compares": true}` (the fields of an item that the
functions need, and whether one can be given several responses at once), or `{"error": ...}` where one cannot be
imported. Then it reads lists of responses, each an object of those fields, and answers each list, in order, with
`{"rewards": [[number or null for each function], ...]}`, or `{"cause": ..., "problem": ...}`, the cause as the pool
counts it. From then on it may take BYTES of memory more than it has (Linux). The process ends when its parent does,
however the parent ended and whatever a function is doing, even in C code that never lets go of the interpreter (on
Linux; elsewhere once idle).
"""

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driftproof.verify.functions import Fields, NoRewardError, RewardFunction, describe, load, score


def main() -> None:
    lifeline, memory, *names = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(int(lifeline))
    requests, replies = _take_standard_streams()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")

    # Last on the path, so that a function in the working directory is found without an installation.
    sys.path.append(str(Path.cwd()))
    try:
        functions = [load(name) for name in names]
    except BaseException as error:  # noqa: BLE001 (foreign code; the pool raises what is reported here)
        reply({"error": describe(error)})
        return
    needs = frozenset[str]().union(*(function.needs for function in functions))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    _limit_memory(int(memory))
    reply({"needs": sorted(needs), "compares": any(function.compares for function in functions)})
    for line in requests:
        reply(_judge(functions, json.loads(line), loop))


def _end_with_parent(lifeline: int) -> None:
    # The parent holds the other end of this pipe. When it closes the kernel sends SIGIO, which ends a process by
    # default; no Python code has to run for that.
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit("the verifier's parent process has ended")


def _take_standard_streams() -> tuple[Any, Any]:
    """Keep the channel to the parent, and give foreign code an empty input and standard error to print to."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _limit_memory(more: int) -> None:
    """Let no function take `more` bytes beyond what the process has now: it gets a MemoryError then."""
    with contextlib.suppress(OSError, ValueError):  # not Linux, or a limit of the system's below this one
        status = Path("/proc/self/status").read_text()
        (has,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")]
        _, highest = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (has * 1024 + more, highest))


def _judge(
    functions: Sequence[RewardFunction], items: Sequence[Fields], loop: asyncio.AbstractEventLoop
) -> dict[str, Any]:
    try:
        return {"rewards": score(functions, items, loop)}
    except NoRewardError as error:
        return {"cause": "invalid_rewards", "problem": describe(error)}
    except BaseException as error:  # noqa: BLE001 (foreign code; the pool counts and shows what is reported here)
        return {"cause": "crashes", "problem": f"verifier crashed: {describe(error)}"}


if __name__ == "__main__":
    main()
