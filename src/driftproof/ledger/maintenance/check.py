"""Whether a run is what it says it is: `driftproof ledger check`.

Guarantees: reads in one transaction, in which writers go on; creates, changes and migrates nothing; whatever is wrong
with the files becomes a finding, a sentence for people.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftproof.errors import DamageError, LedgerError, UnavailableError
from driftproof.ledger.maintenance.files import file_problems
from driftproof.ledger.schema import CONTENT, read_group
from driftproof.ledger.store import (
    FINISHED,
    RUNNING,
    STOPPING,
    UNREADABLE,
    Plan,
    channel_problem,
    check_format,
    order_of,
    read_plan,
)
from driftproof.run import RunDirectory, step_directories

ATTEMPTS = 5
"""Times that a ledger is read anew because a run has begun to write it."""
SHOWN = 5
"""Numbers that a finding names before it counts the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """What was found in a run."""

    groups: int
    """Dispatched."""
    steps: int
    """Finished."""
    findings: tuple[str, ...]
    """Empty where nothing is wrong."""


def check_run(run: Path) -> Integrity:
    """Verify a run that is being trained or is not: its ledger, checkpoints and snapshots.

    Raises:
        UnavailableError: the directory is not a run.
    """
    directory = RunDirectory(path=run)
    if not directory.ledger.is_file():
        raise UnavailableError(f"{run} is not a run: it has no {directory.ledger.name}")
    # Before the ledger is read, which knows of a step before its checkpoint is named.
    checkpoints = list(step_directories(directory.checkpoints))
    found = check_ledger(directory.ledger)
    beyond = [f"{directory.checkpoints} has a checkpoint of step {step}" for step in checkpoints if step > found.steps]
    beyond = [f"{finding}, the ledger is at step {found.steps}" for finding in beyond]
    return Integrity(groups=found.groups, steps=found.steps, findings=(*found.findings, *beyond, *file_problems(run)))


def check_ledger(path: Path) -> Integrity:
    """Verify a ledger alone."""
    for _ in range(ATTEMPTS):
        before = _stamp(path)
        with reading(path) as database:
            found = _check(path, database)
        if _stamp(path) == before or path.with_name(f"{path.name}-wal").exists():
            return found
    return found


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that can only read, and leaves no file behind."""
    # Without a write-ahead log nobody has it open; SQLite would make one to read, unless told that nobody will.
    immutable = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True, timeout=60, isolation_level=None
    )
    database.text_factory = lambda text: text.decode(errors="replace")
    try:
        yield database
    finally:
        database.close()


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _check(path: Path, database: sqlite3.Connection) -> Integrity:
    try:
        database.execute("BEGIN")
        meta = {str(key): str(value) for key, value in database.execute("SELECT key, value FROM meta")}
    except UNREADABLE as error:
        return Integrity(groups=0, steps=0, findings=(f"{path} cannot be read: {error}",))
    try:
        check_format(path, meta)
        facts = Facts.of(read_plan(path, meta), meta)
    except LedgerError as error:
        return Integrity(groups=0, steps=0, findings=(str(error),))
    questions: dict[str, Callable[[sqlite3.Connection, Facts], Iterator[str]]] = {
        "the file": _file,
        "meta": _meta,
        "steps": _steps,
        "groups": _groups,
        "evaluations, workers and events": _others,
    }
    findings: list[str] = []
    for what, question in questions.items():
        try:
            findings += question(database, facts)
        except UNREADABLE as error:
            findings.append(f"{what}: cannot be read: {error}")
    return Integrity(groups=facts.dispatched, steps=facts.step, findings=tuple(findings))


@dataclass(slots=True, kw_only=True)
class Facts:
    """What a ledger says of itself, and what is counted while it is read."""

    plan: Plan
    version: int
    state: str
    step: int
    pruned_step: int
    checked_from: int | None
    """Groups dispatched from here on have a checksum; None: none has."""
    furthest_step: int | None
    """The most that was done before a resume went back; None where it is not known."""
    dispatched: int = 0
    trained: Counter[int] = field(default_factory=Counter)
    """Groups by the step that trained them."""

    @classmethod
    def of(cls, plan: Plan, meta: Mapping[str, str]) -> Facts:
        """A number that is no number is -1, which nothing agrees with."""

        def number(key: str) -> int:
            return int(meta[key]) if meta.get(key, "").isdecimal() else -1

        version = number("format_version")
        return cls(
            plan=plan,
            version=version,
            state=meta.get("state", ""),
            step=number("step"),
            pruned_step=0 if version == 1 else number("pruned_step"),
            checked_from=None if version == 1 else number("checked_from"),
            furthest_step=number("furthest_step") if "furthest_step" in meta else None,
        )


def group_problem(facts: Facts, prompt_index: int, row: Sequence[Any]) -> str:
    """What is wrong with a row of `GROUP_COLUMNS` whose prompt must be this one; empty where nothing is."""
    dispatch, prompt, state, worker, dispatched_step, trained_step, crc, *content = row
    if prompt != prompt_index:
        return f"of prompt {prompt}, where the permutation has another"
    if not (isinstance(dispatched_step, int) and dispatched_step >= 0):
        return "dispatched in a step that never was"
    if state == "leased":
        held = any(column is not None for column in content) or trained_step is not None
        return "leased, and written already" if held else "" if worker else "leased by nobody"
    if state not in ("ready", "trained"):
        return "in a state that does not exist"
    if (state == "trained") != isinstance(trained_step, int):
        return "trained in no step, or not trained in one"
    if state == "trained" and trained_step <= facts.pruned_step and all(column is None for column in content):
        return ""
    return content_problem(facts, dispatch, prompt_index, crc, content)


def content_problem(facts: Facts, dispatch: int, prompt_index: int, crc: object, content: Sequence[Any]) -> str:
    """What is wrong with the content of a group; empty where nothing is."""
    if not isinstance(crc, int) and not (crc is None and (facts.checked_from is None or dispatch < facts.checked_from)):
        return "without a checksum"
    try:
        return channel_problem(facts.plan, read_group(prompt_index, content, crc if isinstance(crc, int) else None))
    except DamageError as error:
        return str(error)


def group_columns(version: int) -> str:
    """The columns that `group_problem` reads, in a ledger of any format."""
    crc = "checksum" if version > 1 else "NULL"
    return f"dispatch, prompt_index, state, worker, dispatched_step, trained_step, {crc}, {CONTENT}"


def some(numbers: Sequence[int]) -> str:
    """The first few, and how many more."""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return shown if len(numbers) <= SHOWN else f"{shown} and {len(numbers) - SHOWN:,} more"


def _file(database: sqlite3.Connection, facts: Facts) -> Iterator[str]:
    for (line,) in database.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"the file: {' '.join(str(line).split())}"


def _meta(database: sqlite3.Connection, facts: Facts) -> Iterator[str]:
    if facts.state not in (RUNNING, STOPPING, FINISHED):
        yield f"meta: state is {facts.state!r}"
    if not 0 <= facts.step <= facts.plan.steps:
        yield f"meta: step is {facts.step} of {facts.plan.steps}"
    if not 0 <= facts.pruned_step <= max(facts.step, 0):
        yield f"meta: groups are pruned up to step {facts.pruned_step}, beyond step {facts.step}"


def _steps(database: sqlite3.Connection, facts: Facts) -> Iterator[str]:
    numbers = []
    for step, metrics in database.execute("SELECT step, metrics FROM steps ORDER BY step"):
        numbers.append(step)
        if not is_object(metrics):
            yield f"step {step}: its metrics cannot be read"
    if missing := sorted(set(range(1, facts.step + 1)) - set(numbers)):
        yield f"steps: {some(missing)} not recorded"
    if extra := sorted(set(numbers) - set(range(1, facts.step + 1))):
        yield f"steps: {some(extra)} recorded, the ledger is at step {facts.step}"


def _groups(database: sqlite3.Connection, facts: Facts) -> Iterator[str]:
    order = order_of(facts.plan)
    found: dict[str, list[int]] = {}
    for row in database.execute(f"SELECT {group_columns(facts.version)} FROM groups ORDER BY dispatch"):
        dispatch, state, trained_step = row[0], row[2], row[5]
        if not 0 <= dispatch < facts.plan.steps * facts.plan.groups_per_step:
            found.setdefault("beyond those of the run", []).append(dispatch)
            continue
        for missing in range(facts.dispatched, dispatch):
            found.setdefault("not there", []).append(missing)
        facts.dispatched = dispatch + 1
        if problem := group_problem(facts, order.prompt_of(dispatch), row):
            found.setdefault(problem, []).append(dispatch)
        if state == "trained" and isinstance(trained_step, int):
            facts.trained[trained_step] += 1
    for problem, numbers in found.items():
        yield f"groups {some(numbers)}: {problem}"
    yield from _counts(facts)


def _counts(facts: Facts) -> Iterator[str]:
    plan, under_way = facts.plan, facts.step + 1
    wrong = [step for step in range(1, facts.step + 1) if facts.trained[step] != plan.groups_per_step]
    if wrong:
        first = facts.trained[wrong[0]]
        yield f"steps {some(wrong)}: trained other than {plan.groups_per_step} groups (the first {first})"
    if facts.trained[under_way] not in (0, plan.groups_per_step):
        yield f"step {under_way}: under way with {facts.trained[under_way]} groups, not {plan.groups_per_step}"
    if nowhere := sorted(step for step in facts.trained if not 1 <= step <= under_way):
        yield f"steps {some(nowhere)}: trained groups, and are not there"
    furthest = plan.steps if facts.furthest_step is None else max(facts.step, facts.furthest_step)
    admitted = min(furthest + 1 + plan.max_staleness, plan.steps) * plan.groups_per_step
    if facts.dispatched > admitted:
        yield f"groups: {facts.dispatched} dispatched, {admitted} admitted"


def _others(database: sqlite3.Connection, facts: Facts) -> Iterator[str]:
    for name, step, result in database.execute("SELECT name, step, result FROM evaluations"):
        if not is_object(result):
            yield f"evaluation {name!r} of step {step}: its result cannot be read"
    for worker, counters in database.execute("SELECT worker, counters FROM workers"):
        if not is_object(counters):
            yield f"worker {worker!r}: its counters cannot be read"
    if facts.version > 1:
        counted = dict(database.execute("SELECT kind, count(*) FROM events GROUP BY kind"))
        if counted != dict(database.execute("SELECT kind, count FROM event_kinds")):
            yield "events: the counts by kind do not agree with them"


def is_object(text: object) -> bool:
    """Whether a column holds a JSON object."""
    try:
        return isinstance(json.loads(str(text)), dict)
    except ValueError:
        return False
