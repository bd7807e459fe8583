"""Whatever is called in whatever order: nothing is lost, nothing is trained twice, nothing is admitted too early."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.maintenance.check import check_ledger
from driftproof.ledger.maintenance.prune import prunable_step
from driftproof.ledger.records import Counters, Lease, Plan
from driftproof.types import Batch
from tests.groups import make_group

workers = st.sampled_from("abc")


@dataclass
class Expected:
    """What must be known of one dispatch."""

    state: str
    worker: str
    over: bool
    dispatched_step: int
    released: bool = False
    """Whether its lease was taken away, which no renewal gives back."""
    trained_step: int | None = None
    copies: int = 0
    """Commits that were accepted."""


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.groups: list[Expected] = []
        self.step = 0
        self.taken: Batch | None = None
        self.rewound = False
        self.checkpoints: list[int] = []
        """Steps of those that are kept, oldest first."""
        self.pruned_step = 0
        self.published_step = 0

    @initialize(
        prompts=st.integers(1, 5),
        groups_per_step=st.integers(1, 3),
        max_staleness=st.integers(0, 3),
        steps=st.integers(1, 6),
        publish_every=st.integers(0, 3),
    )
    def create(self, prompts: int, groups_per_step: int, max_staleness: int, steps: int, publish_every: int) -> None:
        self.plan = Plan(
            seed=7,
            prompts=prompts,
            groups_per_step=groups_per_step,
            max_staleness=max_staleness,
            steps=steps,
            publish_every=publish_every,
        )
        self.ledger = Ledger.create(Path(self.directory.name) / "ledger.sqlite", self.plan)
        self.order = [self.ledger.prompt_of(n) for n in range(steps * groups_per_step)]

    def teardown(self) -> None:
        self.ledger.close()
        assert check_ledger(self.ledger.path).findings == ()
        self.directory.cleanup()

    def numbers(self, state: str) -> list[int]:
        return [n for n, group in enumerate(self.groups) if group.state == state]

    @rule(worker=workers, count=st.integers(0, 5), over=st.booleans())
    def lease(self, worker: str, count: int, over: bool) -> None:
        """`over` leases have run out when they are given."""
        expired = [n for n in self.numbers("leased") if self.groups[n].over][:count]
        # A snapshot that is overdue holds back.
        due = self.published_step + self.plan.publish_every - 1 if self.plan.publish_every else self.step
        admitted = min(min(self.step, due) + 1 + self.plan.max_staleness, self.plan.steps) * self.plan.groups_per_step
        fresh = list(range(len(self.groups), min(admitted, len(self.groups) + count - len(expired))))
        leases = self.ledger.lease(worker, count, -1.0 if over else 1000.0)
        assert leases == [Lease(dispatch=n, prompt_index=self.order[n]) for n in expired + fresh]
        for n in expired:
            self.groups[n] = Expected("leased", worker, over, self.step)
        self.groups += [Expected("leased", worker, over, self.step) for _ in fresh]

    @rule(worker=workers)
    def release(self, worker: str) -> None:
        for n in self.numbers("leased"):
            if self.groups[n].worker == worker:
                self.groups[n].over = self.groups[n].released = True
        self.ledger.release(worker)

    @rule(worker=workers, forgotten=st.sets(st.integers(0, 17), max_size=3))
    def renew(self, worker: str, forgotten: set[int]) -> None:
        held = set(range(len(self.groups))) - forgotten
        for n in held.intersection(self.numbers("leased")):
            self.groups[n].over &= self.groups[n].worker != worker or self.groups[n].released
        self.ledger.renew(worker, held, 1000.0, Counters())

    @rule(worker=workers, later=st.integers(0, 2), others=st.sets(st.integers(0, 17), max_size=4))
    def commit(self, worker: str, later: int, others: set[int]) -> None:
        """Leased to this worker or another, committed before, or never leased at all."""
        own = [n for n in self.numbers("leased") if self.groups[n].worker == worker]
        numbers = {*own[later:], *(n for n in others if n < len(self.order))}
        accepted = numbers & set(own)
        groups = {n: make_group([1], [[n, ord(worker)]], prompt_index=self.order[n]) for n in numbers}
        assert self.ledger.commit(worker, groups) == len(accepted)
        for n in accepted:
            self.groups[n].state = "ready"
            self.groups[n].copies += 1

    @precondition(lambda self: self.taken is None)
    @rule()
    def take(self) -> None:
        ready = self.numbers("ready")[: self.plan.groups_per_step]
        self.taken = self.ledger.take(self.plan.groups_per_step)
        if len(ready) < self.plan.groups_per_step:
            assert self.taken is None
            return
        assert self.taken is not None
        assert self.taken.step == self.step + 1
        assert [group.response_tokens.tolist() for group in self.taken.groups] == [
            [n, ord(self.groups[n].worker)] for n in ready
        ]
        assert list(self.taken.ages) == [self.step - self.groups[n].dispatched_step for n in ready]
        assert self.rewound or min(self.taken.ages) >= 0
        for n in ready:
            self.groups[n].state, self.groups[n].trained_step = "trained", self.step + 1

    @precondition(lambda self: self.taken is not None)
    @rule()
    def finish_step(self) -> None:
        self.step += 1
        self.ledger.finish_step(self.step, {"groups": self.plan.groups_per_step})
        self.taken = None

    @rule()
    def publish(self) -> None:
        self.ledger.published(self.step)
        self.published_step = self.step

    @rule(older=st.booleans())
    def crash_and_resume(self, older: bool) -> None:
        """Everything in memory is gone; the run goes on from its newest checkpoint, or the oldest that is kept."""
        self.ledger.close()
        self.ledger = Ledger(self.ledger.path)
        assert self.ledger.plan == self.plan
        if older:
            del self.checkpoints[1:]
        self.step = max(self.checkpoints, default=0)
        later = [n for n in self.numbers("trained") if (self.groups[n].trained_step or 0) > self.step]
        assert self.ledger.rewind(self.step) == len(later)
        self.published_step = min(self.published_step, self.step)
        self.undone()

    @rule(keep=st.integers(1, 3))
    def checkpoint(self, keep: int) -> None:
        self.ledger.make_durable()
        if self.step not in self.checkpoints:
            self.checkpoints = [*self.checkpoints, self.step][-keep:]

    @rule(keep_steps=st.integers(0, 3))
    def prune(self, keep_steps: int) -> None:
        step = prunable_step(self.step, keep_steps, self.checkpoints)
        forgotten = [
            n for n in self.numbers("trained") if self.pruned_step < (self.groups[n].trained_step or 0) <= step
        ]
        assert self.ledger.prune(step) == len(forgotten)
        self.pruned_step = max(self.pruned_step, step)

    @rule()
    def reopen(self) -> None:
        """A process that ends and begins changes nothing."""
        before = self.ledger.status()
        self.ledger.close()
        self.ledger = Ledger(self.ledger.path)
        assert self.ledger.status() == before

    def undone(self) -> None:
        for n in self.numbers("trained"):
            if (self.groups[n].trained_step or 0) > self.step:
                self.groups[n].state, self.groups[n].trained_step = "ready", None
        for n in self.numbers("leased"):
            self.groups[n].over = self.groups[n].released = True
        self.taken, self.rewound = None, True

    @invariant()
    def counts_agree(self) -> None:
        status = self.ledger.status()
        assert (status.step, status.dispatched) == (self.step, len(self.groups))
        assert status.leased == len(self.numbers("leased"))
        assert status.ready == len(self.numbers("ready"))
        assert status.trained == len(self.numbers("trained"))

    @invariant()
    def every_step_trained_its_groups_once(self) -> None:
        records = {record.dispatch: record for record in self.ledger.records()}
        pruned = {n for n in self.numbers("trained") if (self.groups[n].trained_step or 0) <= self.pruned_step}
        assert sorted(records) == sorted({*self.numbers("ready"), *self.numbers("trained")} - pruned)
        for n, record in records.items():
            expected = self.groups[n]
            assert (record.state, record.worker, record.trained_step) == (
                expected.state,
                expected.worker,
                expected.trained_step,
            )
            assert record.group.prompt_index == self.order[n]
            assert record.group.response_tokens.tolist() == [n, ord(expected.worker)]
            assert expected.copies == 1
        under_way = [self.plan.groups_per_step] if self.taken else []
        of_steps = [len(ages) for ages in self.ledger.ages_by_step()]
        assert of_steps == [self.plan.groups_per_step] * self.step + under_way
        assert [metrics["step"] for metrics in self.ledger.steps()] == list(range(1, self.step + 1))


LedgerMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestPromises = LedgerMachine.TestCase
