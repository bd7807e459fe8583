"""Waiting costs little, and the examples in the docstrings are true."""

import doctest
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from driftproof.ledger import backoff, leases, steps
from driftproof.ledger.backoff import Backoff
from driftproof.ledger.leases import Leases, LocalLeases
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, Counters, Lease, Plan
from driftproof.ledger.steps import Steps
from driftproof.types import Group
from tests.groups import make_group

PLAN = Plan(seed=0, prompts=10, groups_per_step=2, max_staleness=1, steps=5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", PLAN)


def group_of(lease: Lease) -> Group:
    return make_group([1], [[lease.dispatch]], prompt_index=lease.prompt_index)


def statements_of(ledger: Ledger, what: object) -> list[str]:
    found: list[str] = []
    ledger._store.database.set_trace_callback(found.append)
    what()  # type: ignore[operator]
    ledger._store.database.set_trace_callback(None)
    return found


def test_who_waits_only_reads_a_little(ledger: Ledger) -> None:
    """Neither side locks the other out, or reads what groups hold, while it waits."""
    given = ledger.lease("a", 9, 60)
    ledger.commit("a", {given[0].dispatch: group_of(given[0])})
    assert len(given) == 4
    for wait in (lambda: ledger.take(2), lambda: ledger.lease("a", 9, 60), lambda: ledger.lease("a", 0, 60)):
        statements = statements_of(ledger, wait)
        assert not [text for text in statements if not text.startswith("SELECT") or "contents" in text]
    ledger.set_state(FINISHED)
    assert [text[:6] for text in statements_of(ledger, lambda: ledger.lease("a", 1, 60))] == ["SELECT"]


def test_whoever_waits_does_so_while_another_writes(ledger: Ledger) -> None:
    with Ledger(ledger.path) as other, other._store.transaction():
        assert ledger.take(2) is None
        assert ledger.lease("a", 0, 60) == []


def test_pauses_grow_with_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    waiting = Backoff()
    pauses = [waiting.pause() for _ in range(400)]
    assert pauses[0] == backoff.SHORTEST
    assert pauses[-1] == backoff.LONGEST
    assert pauses == sorted(pauses)
    assert all(pause <= max(sum(pauses[:n]) / 40, 0.0011) for n, pause in enumerate(pauses)), "short against the wait"
    waiting.reset()
    assert waiting.pause() == backoff.SHORTEST


def write(dispatch: int) -> Group:
    with LocalLeases(write.path) as reader:  # type: ignore[attr-defined]
        return make_group([1], [[dispatch]], prompt_index=reader.prompt_of(dispatch))


@pytest.mark.parametrize("module", [leases, steps])
def test_the_examples_run(ledger: Ledger, module: ModuleType) -> None:
    write.path = ledger.path  # type: ignore[attr-defined]
    names = {"path": ledger.path, "write": write, "Counters": Counters, "LocalLeases": LocalLeases, "Steps": Steps}
    if module is steps:
        for lease in ledger.lease("a", 4, 60):
            ledger.commit("a", {lease.dispatch: group_of(lease)})
    found = doctest.testmod(module, extraglobs=names)
    assert (found.failed, found.attempted > 5) == (0, True)


def test_a_ledger_is_what_a_worker_asks_for(ledger: Ledger) -> None:
    worker_side: Leases = ledger
    assert worker_side.plan == PLAN


# Admission that waits for snapshots


def train(ledger: Ledger, publish: bool) -> None:
    given = ledger.lease("a", 99, 60)
    ledger.commit("a", {lease.dispatch: group_of(lease) for lease in given})
    batch = ledger.take(2)
    assert batch is not None, ledger.status()
    if publish:
        ledger.published(batch.step)
    ledger.finish_step(batch.step, {})


def make(path: Path, publish_every: int, max_staleness: int, steps: int = 30) -> Ledger:
    plan = Plan(
        seed=0, prompts=10, groups_per_step=2, max_staleness=max_staleness, steps=steps, publish_every=publish_every
    )
    return Ledger.create(path / "held.sqlite", plan)


@pytest.mark.parametrize(("publish_every", "max_staleness"), [(1, 0), (1, 3), (2, 0), (2, 4), (5, 1), (7, 0)])
def test_while_publishing_keeps_up_admission_is_by_the_step_alone(
    tmp_path: Path, publish_every: int, max_staleness: int
) -> None:
    """No run stands still, however rarely it publishes."""
    with make(tmp_path, publish_every, max_staleness) as ledger:
        for step in range(30):
            assert ledger.plan.admitted(ledger.step, ledger.published_step) == min(step + 1 + max_staleness, 30) * 2
            train(ledger, publish=(step + 1) % publish_every == 0)
        assert ledger.status().trained == 60


@pytest.mark.parametrize(("publish_every", "max_staleness"), [(1, 0), (1, 2), (3, 1)])
def test_an_overdue_snapshot_holds_admission_back_until_it_is_there(
    tmp_path: Path, publish_every: int, max_staleness: int
) -> None:
    with make(tmp_path, publish_every, max_staleness) as ledger:
        while ledger.lease("b", 1, -1.0) or ledger.status().ready >= 2:
            train(ledger, publish=False)
        # As far as it would be if the learner stood just before the snapshot that it owes.
        assert ledger.step == publish_every + max_staleness
        assert ledger.status().dispatched == (publish_every + max_staleness) * 2
        ledger.published(ledger.step)
        assert [lease.dispatch for lease in ledger.lease("b", 1, 60)] == [(publish_every + max_staleness) * 2]


def test_the_weights_age_counts_from_the_snapshot_that_was_newest(tmp_path: Path) -> None:
    with make(tmp_path, publish_every=3, max_staleness=0) as ledger:
        for step in range(1, 7):
            train(ledger, publish=step % 3 == 0)
        ages = [(record.age, record.weights_age, record.weights_step) for record in ledger.records()]
    assert ages[::2] == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 3), (0, 1, 3), (0, 2, 3)]


def test_a_batch_knows_both_ages(tmp_path: Path) -> None:
    with make(tmp_path, publish_every=2, max_staleness=1) as ledger:
        train(ledger, publish=False)
        ledger.lease("a", 9, 60)
        batch = ledger.take(2)
    assert batch is not None
    assert (batch.ages, batch.weights_ages) == ((1, 1), (1, 1))


def test_a_resume_has_published_no_more_than_it_has_done(tmp_path: Path) -> None:
    with make(tmp_path, publish_every=1, max_staleness=0) as ledger:
        for _ in range(4):
            train(ledger, publish=True)
        ledger.rewind(2)
        assert (ledger.step, ledger.published_step) == (2, 2)
        train(ledger, publish=True)
        assert np.array_equal([len(step) for step in ledger.ages_by_step()], [2, 2, 2])


def test_a_resume_may_change_how_often_it_publishes(tmp_path: Path) -> None:
    with make(tmp_path, publish_every=1, max_staleness=0) as ledger:
        ledger.extend(30, publish_every=4)
        assert ledger.plan.publish_every == 4
    with Ledger(ledger.path) as again:
        assert again.plan.publish_every == 4
