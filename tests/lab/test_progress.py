"""How far a grid is, as a terminal and as a file show it."""

import io
import time

import pytest
from rich.console import Console

from driftproof.lab.progress import GridProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that it is, to be set."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_for_a_file(clock: list[float]) -> None:
    file = io.StringIO()
    progress = GridProgress(Console(file=file, width=40), found=2)
    progress(2, 8)
    clock[0] += 130
    progress(3, 8)
    progress(3, 8)
    clock[0] += 10
    progress(8, 8)
    progress.close()
    # What was there before says nothing about the speed.
    assert file.getvalue().splitlines() == ["runs 2/8, 0:00", "runs 3/8, 2:10, 10:50 left", "runs 8/8, 2:20"]


def test_the_time_left_goes_down_while_a_run_is_under_way(clock: list[float]) -> None:
    progress = GridProgress(Console(file=io.StringIO()), found=0)
    assert progress.seconds_left is None
    progress(0, 3)
    clock[0] += 60
    assert progress.seconds_left is None
    progress(1, 3)
    assert progress.seconds_left == 120
    clock[0] += 20
    assert progress.seconds_left == 100
    clock[0] += 500
    assert progress.seconds_left == 0


def test_a_bar_for_a_terminal() -> None:
    file = io.StringIO()
    progress = GridProgress(Console(file=file, width=60, force_terminal=True), found=0)
    progress(1, 4)
    progress.close()
    assert "runs 1/4" in file.getvalue()
    assert "━" in file.getvalue()
