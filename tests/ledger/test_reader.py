"""Looking at a ledger: in any order, on any storage, without a change to it."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from driftproof.errors import LedgerError
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.reader import ORDERS, LedgerReader
from driftproof.ledger.records import Counters, Plan
from driftproof.report.view import View
from driftproof.types import FinishReason
from tests.groups import make_group
from tests.ledger.made import make_run
from tests.ledger.tampering import tamper
from tests.storage import read_only

PLAN = Plan(seed=0, prompts=10, groups_per_step=2, max_staleness=2, steps=9)
REWARDS = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.5, float("nan")], [float("nan")] * 2, [0.0, 4.0]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Six groups of rising length by two workers, two of them trained, one whose lease is under way."""
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, PLAN) as ledger:
        for lease, rewards in zip(ledger.lease("a", 3, 99) + ledger.lease("b", 3, 99), REWARDS, strict=True):
            problems = tuple("time limit" if reward != reward else "" for reward in rewards)
            group = make_group(
                [1],
                [[2] * (lease.dispatch + 1), [3]],
                rewards,
                prompt_index=lease.prompt_index,
                problems=problems if any(problems) else (),
            )
            object.__setattr__(
                group, "finish_reasons", (FinishReason.LENGTH if lease.dispatch % 3 == 0 else FinishReason.STOP,) * 2
            )
            ledger.commit("a" if lease.dispatch < 3 else "b", {lease.dispatch: group}, Counters(groups=1))
        ledger.take(2)
        ledger.finish_step(1, {"reward": 0.75})
        ledger.lease("a", 1, 99)
    return path


def dispatches(reader: LedgerReader, *order: object, **which: object) -> list[int]:
    return [group.dispatch for group in reader.browse(*order, **which)]  # type: ignore[arg-type]


def test_groups_are_browsed_in_any_order(path: Path) -> None:
    with LedgerReader(path) as reader:
        assert dispatches(reader) == [6, 5, 4, 3, 2, 1, 0]
        assert dispatches(reader, "oldest", limit=2) == [0, 1]
        assert dispatches(reader, "best") == [5, 0, 3, 1, 2]
        assert dispatches(reader, "worst", limit=2) == [2, 1]
        assert dispatches(reader, "spread", limit=2) == [5, 1]
        assert dispatches(reader, "longest", limit=2) == [5, 4]
        assert dispatches(reader, "shortest", limit=2) == [0, 1]
        assert dispatches(reader, "age") == [1, 0]


def test_groups_are_picked_by_step_worker_and_flag(path: Path) -> None:
    with LedgerReader(path) as reader:
        assert dispatches(reader, step=1) == [1, 0]
        assert dispatches(reader, worker="a") == [2, 1, 0]
        assert dispatches(reader, flag="truncated") == [3, 0]
        assert dispatches(reader, flag="unrewarded", worker="b") == [4, 3]
        assert dispatches(reader, flag="failed") == []
        found = reader.browse("oldest", limit=1)[0]
        assert (found.responses, found.tokens, found.mean_reward, found.reward_spread) == (2, 2, 1.0, 0.0)
        assert (found.truncated, found.failed, found.unrewarded, found.age, found.weights_age) == (2, 0, 0, 0, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_pages_follow_each_other(path: Path, order: str) -> None:
    with LedgerReader(path) as reader:
        whole = dispatches(reader, order)
        pages, last = [], None
        while page := dispatches(reader, order, limit=2, after=last):
            pages += page
            last = page[-1]
        assert pages == whole


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("which", [{}, {"step": 1}, {"worker": "a"}, {"flag": "failed"}])
@pytest.mark.parametrize("few", [0, 1000])
def test_no_page_sorts_or_reads_all_groups(
    path: Path, order: str, which: dict[str, object], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few of a step, a worker or a flag are sorted; of many the first are met in the order of an index."""
    monkeypatch.setattr("driftproof.ledger.reader.FEW", few)
    with LedgerReader(path) as reader:
        statements: list[str] = []
        reader._store.database.set_trace_callback(statements.append)
        dispatches(reader, order, **which)
        reader._store.database.set_trace_callback(None)
        (statement,) = [text for text in statements if "ORDER BY" in text]
        plan = [line for *_, line in reader._store.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert "contents" not in statement
        if not which or not few:
            assert not [line for line in plan if "TEMP B-TREE" in line], plan
        assert [line for line in plan if "INDEX" in line or "PRIMARY KEY" in line] or order in ("newest", "oldest"), (
            plan
        )


def test_one_group_is_read_alone(path: Path) -> None:
    with LedgerReader(path) as reader:
        record = reader.record(1)
        assert record is not None
        assert (record.group.response_tokens.tolist(), record.trained_step) == ([2, 2, 3], 1)
        assert reader.record(6) is reader.record(99) is None


def test_a_reader_cannot_write_and_sees_what_others_write(path: Path) -> None:
    with LedgerReader(path) as reader, Ledger(path) as ledger:
        assert reader.step == 1
        ledger.take(2)
        ledger.finish_step(2, {})
        assert reader.step == 2
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._store.execute("DELETE FROM steps")


def test_a_finished_run_on_storage_that_cannot_be_written_is_read(path: Path) -> None:
    with read_only(path.parent):
        with pytest.raises(OSError, match=r"not permitted|denied"):
            path.with_name("other").touch()
        with LedgerReader(path) as reader:
            assert (reader.step, len(list(reader.records())), len(reader.browse("best"))) == (1, 6, 5)
            assert View.of(reader).status.trained == 2
        assert [there.name for there in path.parent.iterdir()] == ["ledger.sqlite"]


def test_a_log_on_storage_that_cannot_be_written_is_never_left_out(path: Path, tmp_path: Path) -> None:
    """A run that was killed, or is under way, has its newest steps in the log."""
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    with Ledger(path) as ledger:
        ledger.take(2)
        ledger.finish_step(2, {})
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):
            shutil.copy(path.with_name(name), fixed)
    with (
        read_only(fixed),
        pytest.raises(LedgerError, match=r"cannot read .*ledger.sqlite-wal lies beside it, copy the"),
    ):
        LedgerReader(fixed / "ledger.sqlite")
    with LedgerReader(fixed / "ledger.sqlite") as reader:
        assert reader.step == 2


FLIPS: dict[str, tuple[str, Callable[[LedgerReader], object]]] = {
    "a step's metric": ("UPDATE steps SET metrics = replace(metrics, '11.5', '11.4')", lambda r: r.steps()),
    "a metric that is no JSON": ("UPDATE steps SET metrics = replace(metrics, '\"', 'x')", lambda r: r.steps()),
    "a step's number": ("UPDATE steps SET step = 99 WHERE step = 3", lambda r: r.steps()),
    "an evaluation": (
        "UPDATE evaluations SET result = replace(result, '0.5', '0.4')",
        lambda r: r.evaluations(),
    ),
    "a counter": ("UPDATE workers SET counters = replace(counters, '3', '2')", lambda r: r.workers()),
    "a worker's counters, asked alone": ("UPDATE workers SET counters = '{}'", lambda r: r.counters("a")),
    "the step": ("UPDATE meta SET value = '22' WHERE key = 'step'", lambda r: r.step),
    "the state": ("UPDATE meta SET value = 'stopping' WHERE key = 'state'", lambda r: r.state()),
    "a group's step": ("UPDATE groups SET dispatched_step = 1 WHERE dispatch = 9", lambda r: r.ages_by_step()),
    "a group's worker": ("UPDATE groups SET worker = 'q' WHERE dispatch = 9", lambda r: r.browse(limit=999)),
    "the weights' step": ("UPDATE groups SET weights_step = 1 WHERE dispatch = 9", lambda r: r.browse(limit=999)),
    "a mean reward": ("UPDATE groups SET mean_reward = 0.25 WHERE dispatch = 9", lambda r: r.browse("worst")),
    "a group's prompt": ("UPDATE groups SET prompt_index = 4 WHERE dispatch = 9", lambda r: list(r.records())),
}


@pytest.mark.parametrize("flip", FLIPS)
def test_a_value_that_became_another_one_is_met_with_a_sentence(tmp_path: Path, flip: str) -> None:
    path = make_run(tmp_path / "run") / "ledger.sqlite"
    statement, ask = FLIPS[flip]
    with Ledger(path) as ledger:
        ledger.record_evaluation("heldout", 0, {"sampled": 0.5})
    tamper(path, statement)
    sentence = r"is damaged \(.*\); see what is wrong: driftproof ledger check .*; save"
    with pytest.raises(LedgerError, match=sentence), LedgerReader(path) as reader:
        ask(reader)
