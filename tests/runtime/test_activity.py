"""A process says what it is doing where others can read it, cheaply and without ever failing."""

from __future__ import annotations

import time
from pathlib import Path

from driftproof.runtime.activity import Activity, ActivityFile


def test_the_newest_phase_is_read_with_its_beginning(tmp_path: Path):
    path = tmp_path / "learner.activity"
    assert Activity.read(path) is None
    tell = ActivityFile(path)
    assert Activity.read(path) is None, "it has said nothing yet"
    before = time.monotonic()
    tell("loads its model, which takes a while")
    tell("waits for groups")
    first = Activity.read(path)
    assert first is not None
    assert first.phase == "waits for groups"
    assert before <= first.since <= time.monotonic()
    tell("waits for groups")
    assert Activity.read(path) == first, "a phase that goes on has begun when it began"
    assert first.described(first.since + 62.2) == "waits for groups (for 62 s)"


def test_the_file_never_grows(tmp_path: Path):
    tell = ActivityFile(tmp_path / "a")
    tell("short")
    size = (tmp_path / "a").stat().st_size
    tell("long" * 100)
    assert (tmp_path / "a").stat().st_size == size


def test_a_place_that_cannot_be_written_ends_nobody(tmp_path: Path):
    ActivityFile(tmp_path / "missing" / "a")("trains a step")
