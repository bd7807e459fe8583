"""Publish and follow snapshots."""

from driftproof.weights.snapshots import (
    WEIGHTS,
    Publisher,
    Snapshot,
    fsync,
    latest,
    list_snapshots,
    replace_directory,
    write_weights,
)

__all__ = [
    "WEIGHTS",
    "Publisher",
    "Snapshot",
    "fsync",
    "latest",
    "list_snapshots",
    "replace_directory",
    "write_weights",
]
