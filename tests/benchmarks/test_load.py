"""The load benchmark, small: real processes, a real ledger, and a check that finds what is planted."""

from __future__ import annotations

from pathlib import Path

from benchmarks.load import DIGITS, Trained, Work, check, content, learn, saturation, tag, untag, work, write
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from tests.ledger.tampering import tamper, with_content_of

PROBLEMS = (
    "groups_lost",
    "groups_mixed_up",
    "leased_twice",
    "trained_twice",
    "trained_but_not_recorded",
    "steps_of_another_size",
)


def make_ledger(path: Path) -> Path:
    plan = Plan(seed=0, prompts=50, groups_per_step=16, max_staleness=3, steps=10**6)
    Ledger.create(path / "ledger.sqlite", plan).close()
    return path / "ledger.sqlite"


def test_a_tag_is_read_back() -> None:
    for dispatch in (0, 89, 90, 123_456_789):
        assert len(tag(dispatch)) == DIGITS
        assert untag(tag(dispatch)) == dispatch
    assert untag(write(content(8), 77, 3).response_tokens.tolist()) == 77


def worked(path: Path) -> tuple[Work, Trained]:
    """Three workers fill what is admitted, then a learner trains all of it, twice over."""
    done = Work()
    takes: list[int] = []
    steps = 0
    for _ in range(2):
        part = work(path, ["a", "b", "c"], 8, 0.0, _soon(0.3))
        done.add(part)
        trained = learn(path, 0.0, 0.0, _soon(0.3))
        takes += trained.dispatches
        steps += trained.steps
    return done, Trained(steps=steps, dispatches=takes, take_seconds=[], cpu_seconds=0.0)


def _soon(seconds: float) -> float:
    import time

    return time.monotonic() + seconds


def test_nothing_is_lost_and_what_is_planted_is_found(tmp_path: Path) -> None:
    path = make_ledger(tmp_path)
    done, trained = worked(path)
    assert trained.steps >= 4
    assert done.accepted >= 64
    assert len(done.commit_seconds) == done.accepted
    found = check(path, done, trained)
    assert {name: found[name] for name in PROBLEMS} == dict.fromkeys(PROBLEMS, 0)

    again = Trained(steps=trained.steps, dispatches=[*trained.dispatches, 0], take_seconds=[], cpu_seconds=0.0)
    assert check(path, done, again)["trained_twice"] == 1
    tamper(path, "DELETE FROM groups WHERE dispatch = 3", *with_content_of(5, 4))
    broken = check(path, done, trained)
    assert (broken["groups_lost"], broken["groups_mixed_up"], broken["trained_but_not_recorded"]) == (1, 1, 1)
    assert broken["steps_of_another_size"] == 1


def test_saturation_is_the_fewest_workers_that_reach_nine_tenths() -> None:
    cases = [
        {"through": "ledger", "tokens": 64, "pace": None, "workers": workers, "groups_per_second": rate}
        for workers, rate in ((1, 50.0), (4, 95.0), (16, 100.0), (64, 60.0))
    ]
    found = saturation([*cases, cases[0] | {"pace": 10.0, "groups_per_second": 900.0}])
    assert found == {"ledger, 8 x 64 tokens": {"most_groups_per_second": 100.0, "nine_tenths_of_it_with_workers": 4}}
