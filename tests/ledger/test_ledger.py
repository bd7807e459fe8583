import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from driftproof.errors import GroupError, LedgerError
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, RUNNING, STOPPING, Counters, Lease, Plan
from driftproof.report.view import View
from driftproof.types import Batch, Channel, Group
from tests.groups import make_group
from tests.ledger.tampering import changed, tamper

LONG = 1000.0
OVER = -1.0
"""Seconds of a lease that has run out when it is given."""
GROWING = ("groups", "steps", "events")
"""Tables that have more rows with every step."""
MakeLedger = Callable[..., Ledger]


@pytest.fixture
def make_ledger(tmp_path: Path) -> Iterator[MakeLedger]:
    opened: list[Ledger] = []

    def make(**changes: Any) -> Ledger:
        plan = {"seed": 0, "prompts": 10, "groups_per_step": 2, "max_staleness": 1, "steps": 5} | changes
        opened.append(Ledger.create(tmp_path / f"{len(opened)}.sqlite", Plan(**plan)))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: MakeLedger) -> Ledger:
    return make_ledger()


def group_of(lease: Lease, **fields: Any) -> Group:
    return make_group([1], [[lease.dispatch], []], prompt_index=lease.prompt_index, **fields)


def write(ledger: Ledger, count: int = 1, worker: str = "a") -> list[int]:
    """Lease and commit; the dispatch numbers."""
    leases = ledger.lease(worker, count, LONG)
    assert ledger.commit(worker, {lease.dispatch: group_of(lease) for lease in leases}) == len(leases)
    return [lease.dispatch for lease in leases]


def train(ledger: Ledger, count: int = 2, **metrics: Any) -> Batch:
    batch = ledger.take(count)
    assert batch is not None
    ledger.finish_step(batch.step, metrics)
    return batch


def dispatches(batch: Batch | None) -> list[int]:
    """What was trained, by the token that `group_of` wrote."""
    assert batch is not None
    return [int(group.response_tokens[0]) for group in batch.groups]


# Making and opening


def test_a_ledger_remembers_its_plan(make_ledger: MakeLedger):
    ledger = make_ledger(channels=frozenset({Channel.BEHAVIOR_LOGPROBS}), seed=3, model="abc")
    with Ledger(ledger.path) as again:
        assert again.plan == ledger.plan
        assert again.plan.channels == {Channel.BEHAVIOR_LOGPROBS}
        assert (again.state(), again.step) == (RUNNING, 0)


def test_a_ledger_from_before_recorded_shares_opens(ledger: Ledger):
    order = [ledger.prompt_of(n) for n in range(20)]
    database = sqlite3.connect(ledger.path, isolation_level=None)
    remove = "UPDATE meta SET value = json_remove(value, '$.recorded_prompts', '$.recorded_share') WHERE key = 'plan'"
    database.create_function("row_checksum", -1, row_checksum)
    database.execute(remove)
    database.execute("UPDATE meta SET checksum = row_checksum(key, value)")
    assert "recorded" not in database.execute("SELECT value FROM meta WHERE key = 'plan'").fetchone()[0]
    database.close()
    with Ledger(ledger.path) as again:
        assert again.plan == ledger.plan
        assert [again.prompt_of(n) for n in range(20)] == order


@pytest.mark.parametrize(("prompts", "share"), [(0, 0.5), (3, 0.0), (3, 1.01), (3, -0.5), (3, math.nan)])
def test_a_share_without_recorded_prompts_is_refused(make_ledger: MakeLedger, prompts: int, share: float):
    with pytest.raises(
        LedgerError, match="recorded prompts and a share of them, above 0 and at most 1, belong together"
    ):
        make_ledger(recorded_prompts=prompts, recorded_share=share)


def test_a_second_ledger_in_the_same_place_is_refused(ledger: Ledger):
    with pytest.raises(LedgerError, match="exists already; use --resume to go on with that run"):
        Ledger.create(ledger.path, ledger.plan)


def test_what_a_killed_creation_left_behind_is_no_obstacle(tmp_path: Path, ledger: Ledger):
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f".partial-new.sqlite{suffix}").write_bytes(b"half written")
    with Ledger.create(tmp_path / "new.sqlite", ledger.plan) as new:
        assert new.plan == ledger.plan
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize(
    "changes",
    [{"prompts": 0}, {"groups_per_step": 0}, {"steps": 0}, {"max_staleness": -1}],
    ids=lambda c: next(iter(c)),
)
def test_a_plan_that_cannot_be_carried_out_is_refused(make_ledger: MakeLedger, tmp_path: Path, changes: dict[str, int]):
    with pytest.raises(
        LedgerError, match="a run needs prompts, groups per step and steps above 0 and a staleness from 0"
    ):
        make_ledger(**changes)
    assert not list(tmp_path.iterdir())


def test_what_is_no_ledger_is_refused(tmp_path: Path):
    with pytest.raises(LedgerError, match="does not exist; the directory is not a run"):
        Ledger(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("not a database" * 100)
    with pytest.raises(LedgerError, match=r"text is not a driftproof ledger \(file is not a database\)"):
        Ledger(tmp_path / "text")
    database = sqlite3.connect(tmp_path / "foreign")
    database.execute("CREATE TABLE users (name TEXT)")
    database.close()
    with pytest.raises(LedgerError, match=r"foreign is not a driftproof ledger \(no such table: meta\)"):
        Ledger(tmp_path / "foreign")


def test_another_format_is_refused(ledger: Ledger):
    change(ledger, "UPDATE meta SET value = '99' WHERE key = 'format_version'")
    change(ledger, "UPDATE meta SET value = '7.0' WHERE key = 'driftproof'")
    message = r"has ledger format 99, made by driftproof 7.0; .*, which reads formats 1 to 3: install driftproof 7.0"
    with pytest.raises(LedgerError, match=message):
        Ledger(ledger.path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, ledger: Ledger):
    with pytest.raises(LedgerError, match=r"cannot open .*; is the directory writable, and is there space"):
        Ledger.create(tmp_path / "missing" / "ledger.sqlite", ledger.plan)


# Prompts


@pytest.mark.parametrize("prompts", [1, 7, 64])
def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own(make_ledger: MakeLedger, prompts: int):
    ledger = make_ledger(prompts=prompts)
    epochs = [[ledger.prompt_of(epoch * prompts + n) for n in range(prompts)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(prompts)) for epoch in epochs)
    if prompts > 1:
        assert epochs[0] != epochs[1] != epochs[2]
    with Ledger(ledger.path) as again:
        assert [again.prompt_of(n) for n in reversed(range(3 * prompts))] == [p for e in epochs for p in e][::-1]
    if prompts > 7:
        assert [make_ledger(prompts=prompts, seed=1).prompt_of(n) for n in range(prompts)] != epochs[0]


def test_recorded_prompts_have_their_turns_and_their_indices(make_ledger: MakeLedger):
    ledger = make_ledger(prompts=10, recorded_prompts=2, recorded_share=0.25, max_staleness=9)
    leases = ledger.lease("a", 8, LONG)
    assert [lease.prompt_index >= 10 for lease in leases] == [False, False, False, True] * 2
    assert {lease.prompt_index for lease in leases if lease.prompt_index >= 10} == {10, 11}
    ledger.commit("a", {lease.dispatch: group_of(lease) for lease in leases})
    ledger.extend(7)
    with Ledger(ledger.path) as again:
        assert (again.plan.recorded_share, again.plan.steps) == (0.25, 7)
        assert [again.prompt_of(n) for n in range(8)] == [lease.prompt_index for lease in leases]


def test_leases_name_the_prompts_of_the_permutation(make_ledger: MakeLedger):
    ledger = make_ledger(prompts=3, max_staleness=9)
    leases = ledger.lease("a", 8, LONG)
    assert leases == [Lease(dispatch=n, prompt_index=ledger.prompt_of(n)) for n in range(8)]


# Admission


@pytest.mark.parametrize("max_staleness", [0, 1, 5])
@pytest.mark.parametrize("groups_per_step", [1, 3])
def test_admission_is_by_counting_alone(make_ledger: MakeLedger, max_staleness: int, groups_per_step: int):
    ledger = make_ledger(max_staleness=max_staleness, groups_per_step=groups_per_step, steps=4)
    for step in range(4):
        write(ledger, 100)
        admitted = min(step + 1 + max_staleness, 4) * groups_per_step
        assert ledger.status().dispatched == admitted
        assert ledger.lease("b", 100, LONG) == []
        batch = train(ledger, groups_per_step)
        assert dispatches(batch) == list(range(step * groups_per_step, (step + 1) * groups_per_step))
        assert max(batch.ages) == min(step, max_staleness)
    assert ledger.lease("a", 1, LONG) == []
    assert ledger.take(1) is None


def test_no_more_is_leased_than_asked_for(ledger: Ledger):
    assert ledger.lease("a", 0, LONG) == []
    assert [lease.dispatch for lease in ledger.lease("a", 3, LONG)] == [0, 1, 2]
    assert [lease.dispatch for lease in ledger.lease("b", 3, LONG)] == [3]


@pytest.mark.parametrize("state", [STOPPING, FINISHED])
def test_nothing_is_leased_once_the_run_is_to_end(ledger: Ledger, state: str):
    (lease,) = ledger.lease("a", 1, LONG)
    ledger.set_state(state)
    assert ledger.state() == state
    assert ledger.lease("a", 1, LONG) == []
    assert ledger.commit("a", {lease.dispatch: group_of(lease)}) == 1


def test_an_unknown_state_is_refused(ledger: Ledger):
    with pytest.raises(ValueError, match="unknown state 'paused'"):
        ledger.set_state("paused")


# Leases


def test_a_lease_that_ran_out_is_given_anew_and_first(ledger: Ledger):
    lost = ledger.lease("a", 2, OVER)
    assert ledger.lease("b", 3, LONG) == [*lost, Lease(dispatch=2, prompt_index=ledger.prompt_of(2))]
    assert ledger.events()["lease expired"] == (1, "groups [0, 1] given to b")


def test_a_lease_runs_out_with_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("driftproof.ledger.leases.time", SimpleNamespace(monotonic=lambda: now))
    (lost,) = ledger.lease("a", 1, 5.0)
    now += 4.9
    assert ledger.lease("b", 1, LONG)[0] != lost
    now += 0.2
    assert ledger.lease("b", 1, LONG) == [lost]


def test_what_comes_after_its_lease_passed_on_is_not_accepted_but_counted(ledger: Ledger):
    (lease,) = ledger.lease("a", 1, OVER)
    ledger.lease("b", 1, LONG)
    assert ledger.commit("a", {0: group_of(lease, rewards=[1.0, 1.0])}) == 0
    assert ledger.events()["late commit"] == (1, "1 groups of a, whose leases had expired")
    assert ledger.commit("b", {0: group_of(lease)}) == 1
    (record,) = ledger.records()
    assert (record.worker, record.group.rewards.tolist()) == ("b", [0.0, 0.0])


def test_what_comes_late_is_accepted_while_nobody_else_has_the_lease(ledger: Ledger):
    (lease,) = ledger.lease("a", 1, OVER)
    assert ledger.commit("a", {0: group_of(lease)}) == 1
    assert ledger.lease("b", 9, LONG)[0].dispatch == 1


def test_a_second_commit_of_a_group_is_not_accepted(ledger: Ledger):
    (lease,) = ledger.lease("a", 1, LONG)
    for accepted in (1, 0, 0):
        assert ledger.commit("a", {0: group_of(lease)}) == accepted
    assert ledger.events()["late commit"][0] == 2
    assert ledger.status().ready == 1


def test_what_was_never_leased_is_not_accepted(ledger: Ledger):
    (lease,) = ledger.lease("a", 1, LONG)
    foreign = Lease(dispatch=3, prompt_index=ledger.prompt_of(3))
    assert ledger.commit("a", {3: group_of(foreign), 0: group_of(lease)}) == 1
    assert ledger.status().ready == 1
    assert [record.dispatch for record in ledger.records()] == [0]


def test_committing_nothing_is_nothing(ledger: Ledger):
    assert ledger.commit("a", {}) == 0
    assert ledger.events() == {}


def test_renewing_moves_the_deadlines_of_one_worker(ledger: Ledger):
    ledger.lease("a", 1, OVER)
    ledger.lease("b", 2, OVER)
    # b took over the group of a.
    ledger.renew("a", [0], LONG, Counters())
    assert [lease.dispatch for lease in ledger.lease("c", 1, LONG)] == [0]
    ledger.renew("b", [0, 1], LONG, Counters())
    assert [lease.dispatch for lease in ledger.lease("d", 9, LONG)] == [2, 3]


def test_a_lease_that_a_living_worker_does_not_know_of_expires(ledger: Ledger):
    """The answer to its question was lost, say: it goes on to renew the others."""
    ledger.lease("a", 3, OVER)
    ledger.renew("a", [0, 2], LONG, Counters())
    assert [lease.dispatch for lease in ledger.lease("b", 1, LONG)] == [1]
    ledger.renew("a", {0, 1, 2, 77}, LONG, Counters(renewals=2))
    assert ledger.workers()["a"].renewals == 2
    assert [lease.dispatch for lease in ledger.lease("c", 9, LONG)] == [3], "what it names of others stays theirs"


def test_a_worker_of_the_same_name_does_not_revive_the_leases_of_a_dead_one(ledger: Ledger):
    ledger.lease("a", 2, LONG)
    ledger.release("a")
    ledger.renew("a", [0, 1], LONG, Counters())
    assert [lease.dispatch for lease in ledger.lease("a", 2, LONG)] == [0, 1]


def test_a_dead_worker_gives_back_its_leases(ledger: Ledger):
    ledger.lease("a", 2, LONG)
    ledger.lease("b", 1, LONG)
    write(ledger, 1, worker="a")
    assert ledger.release("a") == 2
    assert ledger.release("a") == 0
    assert [lease.dispatch for lease in ledger.lease("c", 9, LONG)] == [0, 1]
    assert ledger.release() == 3
    assert [lease.dispatch for lease in ledger.lease("d", 9, LONG)] == [0, 1, 2]


# Commits


def test_a_group_of_another_prompt_is_refused_with_all_that_came_with_it(ledger: Ledger):
    leases = ledger.lease("a", 2, LONG)
    wrong = {0: group_of(leases[0]), 1: group_of(leases[0])}
    message = f"dispatch 1 is prompt {ledger.prompt_of(1)}, the group is of prompt {ledger.prompt_of(0)}"
    with pytest.raises(GroupError, match=message):
        ledger.commit("a", wrong)
    assert ledger.status().ready == 0


def test_channels_are_there_exactly_when_the_plan_wants_them(make_ledger: MakeLedger):
    with_logprobs, without = make_ledger(channels=frozenset({Channel.BEHAVIOR_LOGPROBS})), make_ledger()
    (lease,) = with_logprobs.lease("a", 1, LONG)
    with pytest.raises(GroupError, match=r"prompt \d+: the objective needs behavior_logprobs and the group has none"):
        with_logprobs.commit("a", {0: group_of(lease)})
    assert with_logprobs.commit("a", {0: group_of(lease, behavior_logprobs=[-0.5])}) == 1
    (record,) = with_logprobs.records()
    assert record.group.behavior_logprobs is not None
    assert record.group.behavior_logprobs.tolist() == [-0.5]
    (lease,) = without.lease("a", 1, LONG)
    with pytest.raises(GroupError, match=r"prompt \d+: the group carries behavior_logprobs, which are not needed"):
        without.commit("a", {0: group_of(lease, behavior_logprobs=[-0.5])})


def test_counters_of_workers_are_replaced(ledger: Ledger):
    a, b = Counters(tokens=5, busy_seconds=0.5, engine={"steps": 3}), Counters(tokens=2, phase="decodes")
    ledger.report_worker("b", Counters(tokens=1))
    ledger.commit("a", {}, a)
    ledger.renew("b", [], LONG, b)
    assert ledger.workers() == {"a": a, "b": b}
    assert (ledger.counters("a"), ledger.counters("c")) == (a, Counters())


# Training


def test_the_oldest_ready_groups_are_taken_in_the_order_of_dispatch(make_ledger: MakeLedger):
    ledger = make_ledger(max_staleness=4)
    leases = ledger.lease("a", 6, LONG)
    assert ledger.take(1) is None
    for number in (5, 2, 4):
        ledger.commit("a", {number: group_of(leases[number])})
    assert ledger.take(4) is None
    assert ledger.status().ready == 3
    batch = ledger.take(2)
    assert batch is not None
    assert (batch.step, dispatches(batch)) == (1, [2, 4])
    assert batch.groups[0].prompt_index == leases[2].prompt_index


def test_the_age_counts_updates_between_dispatch_and_training(make_ledger: MakeLedger):
    ledger = make_ledger(groups_per_step=1, max_staleness=3, steps=9)
    early = ledger.lease("a", 2, LONG)
    write(ledger, 2, worker="b")
    assert [train(ledger, 1).ages for _ in range(2)] == [(0,), (1,)]
    # A lease that is given anew is dispatched anew: its group will be written with the weights of now.
    ledger.release("a")
    assert ledger.lease("b", 1, LONG) == early[:1]
    ledger.commit("b", {0: group_of(early[0])})
    assert train(ledger, 1).ages == (0,)
    ledger.commit("a", {1: group_of(early[1])})
    assert train(ledger, 1).ages == (3,)
    assert [
        (record.dispatch, record.dispatched_step, record.trained_step, record.age) for record in ledger.records()
    ] == [
        (0, 2, 3, 0),
        (1, 0, 4, 3),
        (2, 0, 1, 0),
        (3, 0, 2, 1),
    ]


def test_metrics_of_steps_are_kept_in_order(ledger: Ledger):
    for step in range(3):
        write(ledger, 2)
        train(ledger, reward=step / 2, grad_norm=math.inf)
    assert ledger.step == 3
    assert ledger.steps() == [{"step": n, "reward": (n - 1) / 2, "grad_norm": math.inf} for n in (1, 2, 3)]
    assert [metrics["step"] for metrics in ledger.steps(after=2)] == [3]


def test_status_counts_every_group_once(ledger: Ledger):
    write(ledger, 3)
    ledger.lease("a", 1, LONG)
    train(ledger)
    status = ledger.status()
    assert (status.state, status.step) == (RUNNING, 1)
    assert (status.dispatched, status.leased, status.ready, status.trained) == (4, 1, 1, 2)


def test_making_durable_changes_nothing_else(ledger: Ledger):
    write(ledger, 2)
    train(ledger)
    before = ledger.status()
    ledger.make_durable()
    assert ledger.status() == before
    write(ledger, 1)


def test_evaluations_are_kept_by_name_and_step(ledger: Ledger):
    ledger.record_evaluation("heldout", 0, {"sampled": 0.3})
    ledger.record_evaluation("heldout", 0, {"sampled": 0.4})
    ledger.record_evaluation("other", 0, {})
    assert ledger.evaluations() == {"heldout": {0: {"sampled": 0.4}}, "other": {0: {}}}


def test_events_are_counted_by_kind_with_the_last_message(ledger: Ledger):
    for kind, message in (("b", "one"), ("a", "two"), ("b", "three")):
        ledger.record_event(kind, message)
    assert ledger.events() == {"a": (1, "two"), "b": (2, "three")}


# Going back


def test_rewinding_makes_ready_what_was_trained_later(make_ledger: MakeLedger):
    ledger = make_ledger(max_staleness=3, steps=9)
    first = []
    for step in range(1, 4):
        write(ledger, 2)
        first.append(train(ledger, reward=step))
        ledger.record_evaluation("heldout", step, {})
    ledger.lease("a", 2, LONG)
    ledger.set_state(STOPPING)
    assert ledger.rewind(1) == 4
    assert (ledger.step, ledger.state()) == (1, RUNNING)
    status = ledger.status()
    assert (status.dispatched, status.leased, status.ready, status.trained) == (8, 2, 4, 2)
    assert [metrics["step"] for metrics in ledger.steps()] == [1]
    assert list(ledger.evaluations()["heldout"]) == [1]
    assert [record.trained_step for record in ledger.records()] == [1, 1, None, None, None, None]
    # What follows is what was: the same groups, of the same ages, in the same steps; and the leases are free.
    for batch in first[1:]:
        again = train(ledger)
        assert (again.step, dispatches(again), again.ages) == (batch.step, dispatches(batch), batch.ages)
    assert [lease.dispatch for lease in ledger.lease("b", 2, LONG)] == [6, 7]


def test_what_was_taken_but_not_finished_is_not_lost(ledger: Ledger):
    write(ledger, 2)
    taken = ledger.take(2)
    with Ledger(ledger.path) as again:
        with pytest.raises(LedgerError, match="step 1 has its batch already"):
            again.take(2)
        assert again.rewind(0) == 2
        assert dispatches(train(again)) == dispatches(taken)


def test_rewinding_to_where_one_is_changes_nothing_that_is_trained(ledger: Ledger):
    write(ledger, 4)
    train(ledger)
    assert ledger.rewind(1) == 0
    assert ledger.status().trained == 2


@pytest.mark.parametrize("step", [-1, 2])
def test_rewinding_to_a_step_that_never_was_is_refused(ledger: Ledger, step: int):
    write(ledger, 2)
    train(ledger)
    with pytest.raises(LedgerError, match=rf"cannot go back to step {step}: .* is at step 1"):
        ledger.rewind(step)
    assert ledger.step == 1


def test_a_run_can_be_made_longer_or_shorter(make_ledger: MakeLedger):
    ledger = make_ledger(steps=1)
    assert len(ledger.lease("a", 9, LONG)) == 2
    ledger.extend(2)
    assert (ledger.plan.steps, len(ledger.lease("a", 9, LONG))) == (2, 2)
    with Ledger(ledger.path) as again:
        assert again.plan == ledger.plan
        with pytest.raises(LedgerError, match=r"run.steps is 1, but groups for 2 steps are dispatched already"):
            again.extend(1)


def test_a_failed_transaction_leaves_nothing_behind(ledger: Ledger):
    write(ledger, 2)
    batch = ledger.take(2)
    assert batch is not None
    with pytest.raises(TypeError):
        ledger.finish_step(1, {"not JSON": object()})
    assert (ledger.step, ledger.steps()) == (0, [])
    ledger.finish_step(1, {})
    assert ledger.step == 1


def test_no_question_of_a_step_reads_what_grows(ledger: Ledger):
    """A long run must not become slower: every statement finds its rows by number or by an index of few."""
    statements: list[str] = []
    database = ledger._store.database
    database.set_trace_callback(statements.append)
    write(ledger, 2)
    ledger.lease("a", 1, LONG)
    ledger.renew("a", [2], LONG, Counters())
    ledger.release("a")
    ledger.record_event("late commit", "one")
    train(ledger)
    ledger.status()
    View.of(ledger, View.of(ledger))
    ledger.make_durable()
    ledger.prune(1)
    train_again = ledger.lease("a", 9, LONG)
    ledger.commit("a", {lease.dispatch: group_of(lease) for lease in train_again})
    train(ledger)
    ledger.rewind(1)
    ledger.events()
    ledger.workers()
    database.set_trace_callback(None)
    asked = [text for text in statements if text.split()[0] in ("SELECT", "UPDATE", "DELETE")]
    assert {table for table in GROWING if any(table in text for text in asked)} == {"groups", "steps"}
    assert len([text for text in asked if "groups" in text]) > 15
    for statement in asked:
        for _, _, _, line in database.execute(f"EXPLAIN QUERY PLAN {statement}"):
            grows = line.startswith("SCAN") and any(f"SCAN {table}" in line for table in GROWING)
            assert not grows or "USING INDEX groups_" in line or "USING COVERING INDEX groups_" in line, (
                statement,
                line,
            )
            assert "groups_trained" not in line or "SEARCH" in line, (statement, line)


# Damage


def change(ledger: Ledger, statement: str) -> None:
    tamper(ledger.path, statement)


@pytest.mark.parametrize("column", ["dispatched_step", "weights_step"])
def test_a_lease_that_was_damaged_on_disk_takes_no_group(ledger: Ledger, column: str):
    leases = ledger.lease("w", 2, 60)
    change(ledger, f"UPDATE groups SET {column} = {column} + 1 WHERE dispatch = 1")
    with pytest.raises(LedgerError, match=r"is damaged \(group 1: its row's checksum does not agree\)"):
        ledger.commit(
            "w", {lease.dispatch: make_group([1], [[2]], prompt_index=lease.prompt_index) for lease in leases}
        )
    assert (ledger.status().ready, ledger.status().leased) == (0, 2)


@pytest.mark.parametrize("column", ["response_tokens", "rewards", "prompt_tokens", "response_lengths"])
def test_a_group_that_was_damaged_on_disk_is_never_trained(ledger: Ledger, column: str):
    write(ledger, 2)
    change(ledger, f"UPDATE contents SET {column} = CAST({column} || x'01' AS BLOB) WHERE dispatch = 1")
    message = r"is damaged \(group 1: its checksum does not agree\); .*driftproof ledger repair"
    with pytest.raises(LedgerError, match=message):
        ledger.take(2)
    with pytest.raises(LedgerError, match=message):
        list(ledger.records())
    assert (ledger.status().ready, ledger.step) == (2, 0)


def test_a_group_without_a_checksum_that_is_no_group_is_never_trained(ledger: Ledger):
    write(ledger, 2)
    change(ledger, "UPDATE contents SET finish_reasons = '[' WHERE dispatch = 1")
    change(ledger, f"UPDATE groups SET {changed(content_checksum='NULL')} WHERE dispatch = 1")
    with pytest.raises(LedgerError, match=r"is damaged \(group 1: it is no group"):
        ledger.take(2)


@pytest.mark.parametrize("use", ["open", "steps", "take", "status"])
def test_a_damaged_file_is_told_in_one_sentence(ledger: Ledger, use: str):
    for _ in range(3):
        write(ledger, 2)
        train(ledger, text="x" * 9000)
    write(ledger, 2)
    path = ledger.path
    ledger.close()
    content = bytearray(path.read_bytes())
    # What lies behind the first pages, which say what the ledger is.
    first = 0 if use == "open" else 3
    content[100 if first == 0 else first * 4096 :] = b"\xff" * (len(content) - (first * 4096 or 100))
    path.write_bytes(content)
    uses: dict[str, Callable[[Ledger], object]] = {
        "open": lambda again: None,
        "steps": lambda again: again.steps(),
        "take": lambda again: again.take(2),
        "status": lambda again: again.status(),
    }
    with (
        pytest.raises(LedgerError, match=r"is damaged \(.*\); see what is wrong: driftproof ledger check .*; save"),
        Ledger(path) as again,
    ):
        uses[use](again)


# Time


def test_setting_the_clock_changes_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    leases = ledger.lease("a", 2, LONG)
    for moment in (0.0, 4e9, -1e9):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        assert [lease.dispatch for lease in ledger.lease("b", 9, LONG)] == ([2, 3] if moment == 0.0 else [])
        ledger.record_event("late commit", "x")
    assert ledger.commit("a", {lease.dispatch: group_of(lease) for lease in leases}) == 2


def test_after_a_reboot_a_resume_frees_the_leases_of_before(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    """The monotonic clock begins anew; the old deadlines lie far ahead of it."""
    monkeypatch.setattr(time, "monotonic", lambda: 9e6)
    leases = ledger.lease("a", 4, LONG)
    monkeypatch.setattr(time, "monotonic", lambda: 0.5)
    with Ledger(ledger.path) as again:
        assert again.lease("b", 4, LONG) == []
        again.rewind(0)
        assert again.lease("b", 4, LONG) == leases
