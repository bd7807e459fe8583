"""All that can be asked of a ledger; opened by itself it never writes, and never migrates."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

from driftproof.errors import DamageError
from driftproof.ledger.codec import read_group
from driftproof.ledger.records import Counters, Plan, Record, Status, Summary
from driftproof.ledger.schema import CONTENT, ROW
from driftproof.ledger.store import open_store
from driftproof.types import Group

Order = Literal["newest", "oldest", "best", "worst", "spread", "longest", "shortest", "age"]
ORDERS = {
    "newest": ("dispatch", "DESC", "TRUE", ""),
    "oldest": ("dispatch", "ASC", "TRUE", ""),
    "best": ("mean_reward", "DESC", "mean_reward IS NOT NULL", "groups_reward"),
    "worst": ("mean_reward", "ASC", "mean_reward IS NOT NULL", "groups_reward"),
    "spread": ("reward_spread", "DESC", "reward_spread IS NOT NULL", "groups_spread"),
    "longest": ("tokens", "DESC", "tokens IS NOT NULL", "groups_length"),
    "shortest": ("tokens", "ASC", "tokens IS NOT NULL", "groups_length"),
    "age": ("trained_step - 1 - dispatched_step", "DESC", "state = 'trained'", "groups_age"),
}
"""Column, direction, the groups that have it, and their index."""
FEW = 1000
"""Groups that are found first and sorted then; more are met soon enough in the order of another index."""
Flag = Literal["truncated", "failed", "unrewarded"]
COLUMNS = ", ".join(f"groups.{column}" for column in (*ROW, "checksum"))
CONTENTS = ", ".join(f"contents.{column}" for column in CONTENT)
GROUPS = f"SELECT {COLUMNS}, {CONTENTS} FROM groups LEFT JOIN contents USING (dispatch)"


class LedgerReader:
    """A run's groups, steps, metrics, workers and events, as they are now.

    Example: `for step in reader.steps(after=10): print(step["reward"])`, and
    `reader.record(reader.browse("worst", limit=1)[0].dispatch).group` is the group of lowest mean reward.
    """

    _read_only = True

    def __init__(self, path: Path) -> None:
        """Open an existing ledger; a LedgerError where there is none, a damaged one, or one of a newer format."""
        self._store = open_store(path, read_only=self._read_only)

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._store.path

    @property
    def plan(self) -> Plan:
        return self._store.plan

    def state(self) -> str:
        """running, stopping or finished."""
        return self._store.header("state")["state"]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._store.meta_number("step")

    @property
    def published_step(self) -> int:
        """The step of the newest snapshot."""
        return self._store.meta_number("published_step")

    @property
    def pruned_step(self) -> int:
        """The last step whose groups' content may be forgotten; 0 is none."""
        return self._store.meta_number("pruned_step")

    def prompt_of(self, dispatch: int) -> int:
        """The prompt of the n-th dispatch (see `PromptOrder`)."""
        return self._store.order.prompt_of(dispatch)

    def status(self) -> Status:
        """Counts of now; its cost does not grow with the number of trained groups."""
        with self._store.transaction("DEFERRED"):
            dispatched, count = self._dispatched(), "SELECT count(*) FROM groups WHERE state = '{}'"
            leased, ready = (self._store.number(count.format(state)) for state in ("leased", "ready"))
            counts = {"dispatched": dispatched, "leased": leased, "ready": ready}
            return Status(state=self.state(), step=self.step, **counts, trained=dispatched - leased - ready)

    def steps(self, after: int = 0) -> list[dict[str, Any]]:
        """The metrics of the steps after `after`, in order; each has its `step`."""
        question = "SELECT step, metrics, checksum FROM steps WHERE step > ? ORDER BY step"
        return [
            {"step": step, **metrics} for step, metrics in self._store.sealed(question, "step", read_metrics, after)
        ]

    def evaluations(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Results by name, then step."""
        question = "SELECT name, step, result, checksum FROM evaluations ORDER BY step"
        results: dict[str, dict[int, dict[str, Any]]] = {}
        for name, step, result in self._store.sealed(question, "evaluation", _object):
            results.setdefault(name, {})[step] = result
        return results

    def workers(self) -> dict[str, Counters]:
        """Counters by worker."""
        question = "SELECT worker, counters, checksum FROM workers ORDER BY worker"
        return dict(self._store.sealed(question, "worker", Counters.from_json))

    def counters(self, worker: str) -> Counters:
        """The counters of one worker; all zero where it has not reported."""
        return self.workers().get(worker, Counters())

    def events(self) -> dict[str, tuple[int, str]]:
        """The number of events of each kind, and the last message."""
        rows = self._store.rows("SELECT kind, count, message FROM event_kinds ORDER BY kind")
        return {kind: (count, message) for kind, count, message in rows}

    def ages_by_step(self) -> tuple[tuple[int, ...], ...]:
        """The ages of each trained step's groups, in updates, in the order of dispatch."""
        trained = self._summaries("WHERE state = 'trained' ORDER BY trained_step, dispatch")
        steps = groupby(trained, lambda found: found.trained_step)
        return tuple(tuple(found.age for found in groups if found.age is not None) for _, groups in steps)

    def browse(
        self,
        by: Order = "newest",
        *,
        step: int | None = None,
        worker: str | None = None,
        flag: Flag | None = None,
        after: int | None = None,
        limit: int = 50,
    ) -> list[Summary]:
        """Up to `limit` groups in an order, those alone that a step trained, a worker wrote or a flag marks.

        `after` is the last dispatch number of the page before. Never touches what the groups hold.
        """
        column, direction, known, index = ORDERS[by]
        # An index that has them in the order of dispatch, the condition and its values.
        limits: list[tuple[Any, ...]] = []
        if worker is not None:
            limits.append(("groups_worker", "responses IS NOT NULL AND worker = ?", worker))
        if flag is not None:
            limits.append((f"groups_{flag}", f"{flag} > 0"))
        if step is not None:
            limits.append(("groups_trained", "state = 'trained' AND trained_step = ?", step))
        few = [each[0] for each in limits if self._are_few(*each)]
        index = few[-1] if few else limits[-1][0] if limits and column == "dispatch" else index
        limits.append(("", known))
        if after is not None:
            beyond = "<" if direction == "DESC" else ">"
            place = f"(SELECT {column}, dispatch FROM groups WHERE dispatch = ?)"
            limits.append(("", f"({column}, dispatch) {beyond} {place}", after))
        where = " AND ".join(condition for _, condition, *_ in limits)
        values = [value for _, _, *given in limits for value in given]
        indexed = f"INDEXED BY {index}" if index else ""
        order = f"{column} {direction}, dispatch {direction}"
        return list(self._summaries(f"{indexed} WHERE {where} ORDER BY {order} LIMIT ?", *values, limit))

    def _are_few(self, index: str, condition: str, *values: object) -> bool:
        question = f"SELECT count(*) FROM (SELECT 1 FROM groups INDEXED BY {index} WHERE {condition} LIMIT {FEW})"
        return self._store.number(question, *values) < FEW

    def record(self, dispatch: int) -> Record | None:
        """A group with what it holds; None where it is not committed, or pruned. Raises a LedgerError as `records`."""
        return next(self._records("groups.dispatch = ?", dispatch), None)

    def records(self) -> Iterator[Record]:
        """All committed groups but the pruned, by dispatch; a LedgerError where one is no longer what was committed."""
        return self._records("TRUE")

    def _records(self, which: str, *values: object) -> Iterator[Record]:
        question = (
            f"{GROUPS} WHERE state != 'leased' AND {which} "
            "AND (contents.dispatch IS NOT NULL OR trained_step IS NULL OR trained_step > ?) ORDER BY groups.dispatch"
        )
        for row in self._store.rows(question, *values, self.pruned_step):
            yield Record(**self._fields(row), group=self._group(row))

    def _summaries(self, which: str, *values: object) -> Iterator[Summary]:
        for row in self._store.rows(f"SELECT {COLUMNS} FROM groups {which}", *values):
            yield Summary(**self._fields(row))

    def _fields(self, row: Sequence[Any]) -> dict[str, Any]:
        """Fields of a `Summary`, from a row that begins with the columns of `groups`."""
        return dict(zip(ROW[:-1], self._store.checked(row)[:-1], strict=True))

    def _group(self, row: Sequence[Any]) -> Group:
        dispatch, prompt_index, content_checksum = row[0], row[1], row[len(ROW) - 1]
        try:
            return read_group(prompt_index, row[len(ROW) + 1 :], content_checksum)
        except DamageError as error:
            raise self._store.damage(f"group {dispatch}: {error}") from error

    def _dispatched(self) -> int:
        return self._store.number("SELECT coalesce(max(dispatch), -1) + 1 FROM groups")


class LedgerWriter(LedgerReader):
    """A ledger that is opened to write: what both sides do with it."""

    _read_only = False

    def record_event(self, kind: str, message: str) -> None:
        """Count and keep a tolerated failure or another thing to show."""
        with self._store.transaction():
            self._store.add_event(kind, message)


def read_metrics(text: str) -> dict[str, Any]:
    """The metrics of a step; ValueError where the text holds something else."""
    metrics = _object(text)
    if wrong := [name for name, value in metrics.items() if not isinstance(value, int | float | None)]:
        raise ValueError(f"its {wrong[0][:60]} is no number")
    return metrics


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value
