"""The judge of a soak: it passes what stays, and finds what grows, however small the steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import MIB, Process, Sample, judge, quarters, sample, slope
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan


def watched(minutes: int = 45, **grows: float) -> list[Sample]:
    """A run of ten steps a second; `grows` is by how much a figure of its learner grows in 1,000 steps."""
    samples = []
    for seconds in range(0, minutes * 60, 10):
        thousands = seconds * 10 / 1000
        process = {"rss": 400 * MIB, "pss": 200 * MIB, "anonymous": 300 * MIB, "files": 12, "threads": 4}
        changed = {name: int(value + grows.get(name, 0) * thousands) for name, value in process.items()}
        # It settles within the first minute.
        changed["anonymous"] -= max(0, 60 - seconds) * MIB
        samples.append(
            Sample(
                seconds=seconds,
                step=seconds * 10,
                groups=seconds * 160,
                ledger=int(seconds * 160 * 400 + grows.get("ledger", 0) * seconds**2),
                wal=4 * MIB,
                directory=seconds * 160 * 500,
                load=1.0,
                processes={"learner": Process(pid=1, **changed)},
            )
        )
    return samples


def verdict(samples: list[Sample], step_seconds: list[float]) -> dict[str, Any]:
    found = judge(samples, step_seconds)
    return {
        "step_seconds": found["step_seconds"],
        "ledger": found["ledger_bytes_per_group"],
        "wal": found["wal_mib"],
    } | (found["processes"]["learner"])


def test_what_stays_is_flat() -> None:
    found = verdict(watched(), [0.1] * 27_000)
    assert [name for name, row in found.items() if not row["flat"]] == []
    assert found["anonymous_mib"]["early"] == found["anonymous_mib"]["late"] == 300


@pytest.mark.parametrize(
    ("figure", "grows"),
    [
        ("anonymous_mib", {"anonymous": 0.6 * MIB}),
        ("rss_mib", {"rss": 0.6 * MIB}),
        ("files", {"files": 0.1}),
        ("threads", {"threads": 0.1}),
        ("ledger", {"ledger": 5.0}),
    ],
)
def test_what_grows_is_found_and_nothing_else(figure: str, grows: dict[str, float]) -> None:
    found = verdict(watched(**grows), [0.1] * 27_000)
    assert [name for name, row in found.items() if not row["flat"]] == [figure]


def test_steps_that_become_slower_are_found() -> None:
    slower = [0.1 + 1e-6 * step for step in range(27_000)]
    assert not verdict(watched(), slower)["step_seconds"]["flat"]


def test_quarters_leave_out_the_warm_up() -> None:
    early, late = quarters(watched())
    assert early[0].seconds == 120
    assert late[-1].seconds == 45 * 60 - 10
    assert len(early) == len(late) == (45 * 60 - 120) // 10 // 4


def test_slope_is_in_thousands_of_steps() -> None:
    assert slope([0, 500, 1000, 2000], [7, 8, 9, 11]) == pytest.approx(2)


def test_a_sample_of_this_process(tmp_path: Path) -> None:
    plan = Plan(seed=0, prompts=4, groups_per_step=2, max_staleness=0, steps=2)
    with Ledger.create(tmp_path / "ledger.sqlite", plan) as ledger:
        ledger.lease("w", 2, 60)
        first = sample(os.getpid(), tmp_path, ledger, 0.0)
        with (tmp_path / "more").open("wb") as more:
            more.write(b"1234567")
            more.flush()
            second = sample(os.getpid(), tmp_path, ledger, 0.0)
    before, after = first.processes["parent"], second.processes["parent"]
    assert after.files == before.files + 1
    assert second.directory == first.directory + 7
    assert (first.step, first.groups) == (0, 2)
    assert 0 < before.anonymous <= before.rss
    assert before.threads >= 1
