"""The directories `step-00000042` that snapshots and checkpoints are."""

from __future__ import annotations

import re
from pathlib import Path


def step_directories(directory: Path) -> dict[int, Path]:
    """The complete ones in a directory by their step, in order; whatever else lies there is not ours."""
    found = {path: re.fullmatch(r"step-(\d{8,})", path.name) for path in directory.glob("step-*") if path.is_dir()}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))
