"""Whether a run is what it says it is: `driftproof ledger check`.

Guarantees: reads in one transaction, in which writers go on; creates, changes and migrates nothing; whatever is wrong
with the files becomes a finding, a sentence for people.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

from driftproof.errors import DamageError, LedgerError, UnavailableError
from driftproof.ledger.codec import figures_of, read_group, row_checksum
from driftproof.ledger.maintenance.files import file_problems
from driftproof.ledger.records import STATES, Plan
from driftproof.ledger.schema import CONTENT, ROW
from driftproof.ledger.store import UNREADABLE, Store, channel_problem, open_read_only
from driftproof.run import RunDirectory, step_directories

ATTEMPTS = 5
"""Readings of a ledger that a run begins to write meanwhile."""
SHOWN = 5
"""Numbers that a finding names before it counts the rest."""
UNSEALED = "its checksum does not agree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """Findings on a run."""

    groups: int
    """Groups dispatched."""
    steps: int
    """Steps done."""
    findings: tuple[str, ...]
    """A sentence on each thing that is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHeader:
    """A ledger's plan, state and steps; a step that cannot be read is -1."""

    plan: Plan
    state: str
    step: int
    published_step: int
    pruned_step: int
    furthest_step: int
    """The most steps that were done before a resume went back."""

    @classmethod
    def of(cls, plan: Plan, meta: Mapping[str, str]) -> Self:
        texts = {name: meta.get(name, "") for name in ("step", "published_step", "pruned_step", "furthest_step")}
        steps = {name: int(text) if text.isdecimal() and len(text) < 16 else -1 for name, text in texts.items()}
        return cls(plan=plan, state=meta.get("state", ""), **steps)

    @property
    def admitted(self) -> int:
        """The most groups that may have been dispatched."""
        furthest = max(self.step, self.furthest_step)
        return self.plan.admitted(furthest, furthest)


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
    beyond = [
        f"{directory.checkpoints} has a checkpoint of step {step}, the ledger is at step {found.steps}"
        for step in checkpoints
        if step > found.steps
    ]
    return Integrity(groups=found.groups, steps=found.steps, findings=(*found.findings, *beyond, *file_problems(run)))


def check_ledger(path: Path) -> Integrity:
    """Verify a ledger alone."""
    for _ in range(ATTEMPTS):
        before = path.stat()
        found = _check(path)
        after = path.stat()
        unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if unchanged or path.with_name(f"{path.name}-wal").exists():
            break
    return found


def _check(path: Path) -> Integrity:
    try:
        with closing(open_read_only(path, untouched=True)) as store:
            store.database.text_factory = lambda text: text.decode(errors="replace")
            store.execute("BEGIN")
            header = LedgerHeader.of(store.plan, store.header())
            dispatched = store.number("SELECT coalesce(max(dispatch), -1) + 1 FROM groups")
            return Integrity(groups=dispatched, steps=header.step, findings=tuple(_findings(store, header, dispatched)))
    except LedgerError as error:
        return Integrity(groups=0, steps=0, findings=(str(error),))
    except UNREADABLE as error:
        return Integrity(groups=0, steps=0, findings=(f"{path} cannot be read: {error}",))


def _findings(store: Store, header: LedgerHeader, dispatched: int) -> Iterator[str]:
    for what, question in {"the file": _file, "steps": _steps, "groups": _groups, "the rest": _others}.items():
        try:
            yield from question(store, header)
        except UNREADABLE as error:
            yield f"{what}: cannot be read: {error}"
    if dispatched > header.admitted:
        yield f"groups: {dispatched} dispatched, {header.admitted} admitted"


def _file(store: Store, header: LedgerHeader) -> Iterator[str]:
    if header.state not in STATES:
        yield f"meta: state is {header.state!r}"
    if not 0 <= header.step <= header.plan.steps:
        yield f"meta: step is {header.step} of {header.plan.steps}"
    if not 0 <= header.pruned_step <= max(header.step, 0):
        yield f"meta: groups are pruned up to step {header.pruned_step}, beyond step {header.step}"
    # Weights are published before their step is recorded.
    if not 0 <= header.published_step <= header.step + 1:
        yield f"meta: weights are published of step {header.published_step}, beyond step {header.step}"
    for (line,) in store.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"the file: {' '.join(str(line).split())}"


def _steps(store: Store, header: LedgerHeader) -> Iterator[str]:
    done = range(1, header.step + 1)
    numbers = set()
    for row in store.execute("SELECT * FROM steps ORDER BY step"):
        numbers.add(row[0])
        if problem := object_problem("metrics", row):
            yield f"step {row[0]}: {problem}"
    if missing := len(done) - sum(step in done for step in numbers):
        yield f"steps: {_some((step for step in done if step not in numbers), missing)} not recorded"
    if extra := sorted(step for step in numbers if step not in done):
        yield f"steps: {_some(extra, len(extra))} recorded, the ledger is at step {header.step}"


def _groups(store: Store, header: LedgerHeader) -> Iterator[str]:
    every = range(header.plan.steps * header.plan.groups_per_step)
    trained: Counter[int] = Counter()
    gaps: list[range] = []
    found: dict[str, list[int]] = {}
    expected = 0
    columns = ", ".join([*(f"groups.{name}" for name in (*ROW, "checksum")), "contents.dispatch", *CONTENT])
    for values in store.execute(f"SELECT {columns} FROM groups LEFT JOIN contents USING (dispatch) ORDER BY 1"):
        row, (checksum, there, *content) = values[: len(ROW)], values[len(ROW) :]
        dispatch, state, trained_step = row[0], row[2], row[6]
        if dispatch not in every:
            found.setdefault("beyond those of the run", []).append(dispatch)
            continue
        gaps.append(range(expected, dispatch))
        expected = dispatch + 1
        problem = row_problem(row, checksum, store.order.prompt_of(dispatch))
        if not problem and there is not None:
            problem = content_problem(header.plan, row, content)
        elif not problem and state != "leased" and (trained_step or header.step + 1) > header.pruned_step:
            problem = "without content"
        if problem:
            found.setdefault(problem, []).append(dispatch)
        if state == "trained" and isinstance(trained_step, int):
            trained[trained_step] += 1
    if missing := sum(map(len, gaps)):
        yield f"groups {_some(chain(*gaps), missing)}: not there"
    for problem, numbers in found.items():
        yield f"groups {_some(numbers, len(numbers))}: {problem}"
    yield from _counts(header, trained)
    if strays := store.number("SELECT count(*) FROM contents WHERE dispatch NOT IN (SELECT dispatch FROM groups)"):
        yield f"contents: {strays} of groups that are not there"


def _counts(header: LedgerHeader, trained: Counter[int]) -> Iterator[str]:
    size, done, under_way = header.plan.groups_per_step, range(1, header.step + 1), header.step + 1
    if wrong := len(done) - sum(step in done and count == size for step, count in trained.items()):
        steps = [*islice((step for step in done if trained[step] != size), SHOWN)]
        yield f"steps {_some(steps, wrong)}: trained other than {size} groups (the first {trained[steps[0]]})"
    if trained[under_way] not in (0, size):
        yield f"step {under_way}: under way with {trained[under_way]} groups, not {size}"
    if nowhere := sorted(step for step in trained if not 1 <= step <= under_way):
        yield f"steps {_some(nowhere, len(nowhere))}: trained groups, and are not there"


def _others(store: Store, header: LedgerHeader) -> Iterator[str]:
    for row in store.execute("SELECT * FROM evaluations"):
        if problem := object_problem("result", row):
            yield f"evaluation {row[0]!r} of step {row[1]}: {problem}"
    for row in store.execute("SELECT * FROM workers"):
        if problem := object_problem("counters", row):
            yield f"worker {row[0]!r}: {problem}"
    counted = store.execute("SELECT kind, count(*) FROM events GROUP BY kind ORDER BY kind").fetchall()
    if counted != store.execute("SELECT kind, count FROM event_kinds ORDER BY kind").fetchall():
        yield "events: the counts by kind do not agree with them"


def row_problem(row: Sequence[Any], checksum: object, prompt: int) -> str:
    """A sentence on what is wrong with a row of `groups`, whose prompt must be this one; empty where nothing is."""
    _, prompt_index, state, worker, since, weights_step, trained_step = row[:7]
    if prompt_index != prompt:
        return f"of prompt {prompt_index}, where the permutation has another"
    if not (isinstance(since, int) and since >= 0):
        return "dispatched in a step that never was"
    if weights_step is not None and weights_step not in range(since + 1):
        return "dispatched with weights that were not there"
    if (state == "trained") != isinstance(trained_step, int):
        return "trained in no step, or not trained in one"
    if state == "leased" and not worker:
        return "leased by nobody"
    return "" if row_checksum(*row) == checksum else UNSEALED


def content_problem(plan: Plan, row: Sequence[Any], content: Sequence[Any]) -> str:
    """A sentence on what is wrong with the content of a group with this row; empty where nothing is."""
    if row[2] == "leased":
        return "leased, and written already"
    try:
        group = read_group(row[1], content, row[-1])
    except DamageError as error:
        return str(error)
    if figures_of(group) != tuple(row[7:-1]):
        return "its figures are not those of its content"
    return channel_problem(plan, group)


def object_problem(what: str, row: Sequence[Any]) -> str:
    """A sentence on a row whose last columns are a JSON object and the checksum of all before; empty where it is."""
    *values, checksum = row
    try:
        readable = isinstance(json.loads(values[-1]), dict)
    except (ValueError, TypeError, RecursionError):
        readable = False
    if not readable:
        return f"its {what} cannot be read"
    return "" if row_checksum(*values) == checksum else UNSEALED


def _some(numbers: Iterable[int], count: int) -> str:
    """The first few of `count` numbers, and how many more there are."""
    shown = ", ".join(map(str, islice(numbers, SHOWN)))
    return shown if count <= SHOWN else f"{shown} and {count - SHOWN:,} more"
