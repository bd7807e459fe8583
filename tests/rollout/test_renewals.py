"""A worker that is busy for longer than its leases keeps them, and one that is stuck loses them; by real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Completed
from driftproof.ledger.ledger import Ledger
from driftproof.rollout.renewals import renewals
from driftproof.weights.snapshots import Publisher
from tests.rollout.test_worker import PLAN, worker

LEASE_SECONDS = 3.0
"""The default of 120 s, forty times as fast: a renewal may be two seconds late where others are at work, too."""


class Slow(EmbeddedEngine):
    """An engine that says when it is in a long step, and goes on when it is allowed to."""

    slow_in = "load"
    began: threading.Event
    may_end: threading.Event

    def load(self, snapshot: Path) -> None:
        self._wait("load")
        super().load(snapshot)

    def collect(self) -> list[Completed]:
        self._wait("collect")
        return super().collect()

    def _wait(self, step: str) -> None:
        if step == self.slow_in and not self.began.is_set():
            self.began.set()
            assert self.may_end.wait(300)


@pytest.fixture
def engine(tiny_model_dir: Path) -> Iterator[Slow]:
    engine = Slow.from_directory(tiny_model_dir, slots=16)
    assert isinstance(engine, Slow)
    engine.began, engine.may_end = threading.Event(), threading.Event()
    yield engine
    engine.may_end.set()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger.sqlite", PLAN) as made:
        yield made


def at_work(path: Path, engine: Slow, model: Path, longest_step: float) -> threading.Thread:
    """A worker in a thread of its own, until four groups are ready, or lost."""

    def work() -> None:
        with Ledger(path) as ledger:
            rollouts = worker(ledger, engine, model, lease_seconds=LEASE_SECONDS)
            Publisher(rollouts.weights.snapshots, model).publish(0, load_file(model / "model.safetensors"))
            with rollouts.renewing(partial(Ledger, path), longest_step=longest_step):
                while ledger.status().ready < 4 and "late commit" not in ledger.events():
                    rollouts.work()
            rollouts.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert engine.began.wait(300)
    return thread


@pytest.mark.parametrize(("step", "leases"), [("load", 2.5), ("collect", 1.2)])
def test_a_long_step_costs_no_lease(
    step: str, leases: float, ledger: Ledger, engine: Slow, tiny_model_dir: Path
) -> None:
    engine.slow_in = step
    thread = at_work(ledger.path, engine, tiny_model_dir, longest_step=120)
    until = time.monotonic() + leases * LEASE_SECONDS
    while time.monotonic() < until:
        assert not ledger.lease("another", 4, 60), "all four are the busy worker's"
        time.sleep(0.1)
    assert ledger.workers()["worker"].renewals >= leases, "it reports while it is busy"
    engine.may_end.set()
    thread.join(300)
    assert ledger.status().ready == 4
    assert "late commit" not in ledger.events()


def test_a_step_that_never_ends_gives_the_leases_to_others(ledger: Ledger, engine: Slow, tiny_model_dir: Path) -> None:
    thread = at_work(ledger.path, engine, tiny_model_dir, longest_step=0.5)
    deadline = time.monotonic() + 300
    while len(ledger.lease("another", 4, 60)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    engine.may_end.set()
    thread.join(300)
    assert ledger.events()["late commit"][0] >= 1


def test_a_renewal_that_fails_is_told_to_the_worker(ledger: Ledger) -> None:
    def renew(_: Ledger) -> None:
        raise OSError("the disk is gone")

    def work_on(check: Callable[[], None]) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            check()

    with (
        renewals(partial(Ledger, ledger.path), renew, every=60) as check,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        work_on(check)
