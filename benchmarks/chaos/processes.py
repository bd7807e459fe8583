"""The processes of a run and of its inbox, as the system shows them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path


def find(run: Path, inbox: int | None) -> dict[str, list[int]]:
    """The pids of a run's processes by kind: learner, worker, verifier; `inbox` is the inbox's pid."""
    found: dict[str, list[int]] = {"learner": [], "worker": [], "verifier": []}
    by_parent: list[tuple[int, int]] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_text()
            if "multiprocessing.forkserver" in command:
                log = (entry / "fd" / "2").readlink()
                if log.parent == run / "logs":
                    found[log.stem.partition("-")[0]].append(int(entry.name))
            elif "driftproof.verify.child" in command:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                by_parent.append((int(entry.name), parent))
    ours = {*found["worker"], inbox}
    return found | {"verifier": [pid for pid, parent in by_parent if parent in ours]}


def kill(pid: int) -> bool:
    """Whether there was a process to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def broken(run: Path) -> list[str]:
    """Snapshots and checkpoints that can be seen and are not whole."""
    found = []
    for directory in (*(run / "snapshots").glob("step-*"), *(run / "checkpoints").glob("step-*")):
        needed = ["model.safetensors"]
        needed += ["config.json"] if directory.parent.name == "snapshots" else ["optimizer.safetensors", "state.json"]
        problems = [f"{directory / name}: {problem}" for name in needed if (problem := _problem(directory / name))]
        # Pruned while we looked: it was whole under its name.
        if problems and directory.exists():
            found += problems
    return found


def _problem(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    try:
        if path.suffix == ".json":
            json.loads(content)
            return ""
        length = int.from_bytes(content[:8], "little")
        tensors = json.loads(content[8 : 8 + length])
    except ValueError:
        return "is cut off"
    ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    size = 8 + length + max(ends)
    return "" if len(content) == size else f"has {len(content)} bytes of {size}"
