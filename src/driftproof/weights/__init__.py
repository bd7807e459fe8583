"""Publish and follow snapshots."""

from driftproof.weights.snapshots import (
    WEIGHTS,
    Publisher,
    Snapshot,
    discard_after,
    fsync,
    latest,
    list_snapshots,
    remove_at_once,
    rename_durably,
    write_weights,
)

__all__ = [
    "WEIGHTS",
    "Publisher",
    "Snapshot",
    "discard_after",
    "fsync",
    "latest",
    "list_snapshots",
    "remove_at_once",
    "rename_durably",
    "write_weights",
]
