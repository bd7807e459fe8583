"""Whether a run is what it says it is: `driftproof ledger check`.

Guarantees: reads in one transaction, in which writers go on; creates, changes and migrates nothing; whatever is wrong
with the files becomes a finding, a sentence for people. Of checkpoints and snapshots names, sizes and headers are read,
never a tensor, so that it takes no time however large a model is.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from driftproof.errors import DamageError, LedgerError, UnavailableError
from driftproof.ledger.codec import figures_of, read_group, row_checksum
from driftproof.ledger.reader import read_metrics
from driftproof.ledger.records import STATES, Counters, Plan
from driftproof.ledger.schema import ROW, STATE, TRAINED_STEP
from driftproof.ledger.store import UNREADABLE, Store, channel_problem, open_store
from driftproof.run import LATEST, RunDirectory, step_directories
from driftproof.weights.checkpoints import checkpoint_problems, list_checkpoints, weights_problem
from driftproof.weights.files import WEIGHTS

SHOWN = 5
"""Numbers that a finding names before it counts the rest."""
DISPATCHED = "SELECT coalesce(max(dispatch), -1) + 1 FROM groups"
MOST_MISSING = 10_000
"""Groups that are looked for beyond the number of those that are there."""
READERS = {"metrics": read_metrics, "counters": Counters.from_json, "workers": Counters.from_json}
"""Readers of JSON objects of which more must be so."""
UNSEALED = "its checksum does not agree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """Findings on a run."""

    groups: int
    steps: int
    findings: tuple[str, ...]
    """A sentence on each thing that is wrong."""


class Header:
    """A ledger's plan, state and steps; a step that cannot be read is -1."""

    def __init__(self, plan: Plan, meta: Mapping[str, str]) -> None:
        def number(key: str) -> int:
            text = meta.get(key, "")
            return int(text) if text.isdecimal() and len(text) < 16 else -1

        self.plan = plan
        self.state = meta.get("state", "")
        self.step, self.published_step, self.pruned_step = map(number, ("step", "published_step", "pruned_step"))
        # A resume may have gone back.
        furthest = max(self.step, number("furthest_step"))
        self.admitted = plan.admitted(furthest, furthest)
        """The most groups that may have been dispatched."""


def check_run(run: Path) -> Integrity:
    """Verify ledger, checkpoints and snapshots of a run, at work or not; an UnavailableError where it is none."""
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
    return replace(found, findings=(*found.findings, *beyond, *_file_problems(directory)))


def check_ledger(path: Path) -> Integrity:
    """Verify a ledger alone."""
    has_log = path.with_name(f"{path.name}-wal").exists()
    found = _check(path)
    # Without a log it was read as a file that nobody writes. A run that has begun to meanwhile has a log by now.
    return _check(path) if found.findings and not has_log else found


def _check(path: Path) -> Integrity:
    try:
        with closing(open_store(path, read_only=True, untouched=True)) as store:
            store.database.text_factory = lambda text: text.decode(errors="replace")
            store.execute("BEGIN")
            header = Header(store.plan, store.header())
            dispatched = store.number(DISPATCHED)
            return Integrity(groups=dispatched, steps=header.step, findings=tuple(_findings(store, header, dispatched)))
    except (LedgerError, *UNREADABLE) as error:
        finding = str(error) if isinstance(error, LedgerError) else f"{path} cannot be read: {error}"
        return Integrity(groups=0, steps=0, findings=(finding,))


def _findings(store: Store, header: Header, dispatched: int) -> Iterator[str]:
    for what, question in {"the file": _file, "groups": _groups, "the rest": _others}.items():
        try:
            yield from question(store, header)
        except UNREADABLE as error:
            yield f"{what}: cannot be read: {error}"
    if dispatched > header.admitted:
        yield f"groups: {dispatched} dispatched, {header.admitted} admitted"


def _file(store: Store, header: Header) -> Iterator[str]:
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


def _groups(store: Store, header: Header) -> Iterator[str]:
    size, under_way, rows = header.plan.groups_per_step, header.step + 1, store.number("SELECT count(*) FROM groups")
    found: defaultdict[str, list[int]] = defaultdict(list)
    trained: Counter[int] = Counter()
    # Header and rows may claim more than could ever be looked at.
    for n in range(min(store.number(DISPATCHED), header.plan.steps * size, rows + MOST_MISSING)):
        row, content = read(store.database, "groups", n), read(store.database, "contents", n)
        if problem := row_problem(row, store.order.prompt_of(n)) or content_problem(header, row, content):
            found[problem].append(n)
        if len(row) > TRAINED_STEP and row[STATE] == "trained" and isinstance(row[TRAINED_STEP], int):
            trained[row[TRAINED_STEP]] += 1
    for problem, numbers in found.items():
        yield f"groups {_some(numbers)}: {problem}"
    done = range(1, min(under_way, header.plan.steps + 1, rows // size + 2))
    if wrong := [k for k in done if trained[k] != size]:
        yield f"steps {_some(wrong)}: trained other than {size} groups (the first {trained[wrong[0]]})"
    if trained[under_way] not in (0, size):
        yield f"step {under_way}: under way with {trained[under_way]} groups, not {size}"
    if nowhere := sorted(k for k in trained if not 1 <= k <= under_way):
        yield f"steps {_some(nowhere)}: trained groups, and are not there"
    if strays := store.number("SELECT count(*) FROM contents WHERE dispatch NOT IN (SELECT dispatch FROM groups)"):
        yield f"contents: {strays} of groups that are not there"


def _others(store: Store, header: Header) -> Iterator[str]:
    done, recorded = range(1, min(header.step, header.plan.steps) + 1), set()
    for step, *row in store.execute("SELECT step, metrics, checksum FROM steps ORDER BY step"):
        recorded.add(step)
        if problem := object_problem("metrics", (step, *row)):
            yield f"step {step}: {problem}"
    if missing := list(islice((step for step in done if step not in recorded), SHOWN + 1)):
        yield f"steps: {_some(missing, len(done) - sum(step in done for step in recorded))} not recorded"
    if extra := sorted(recorded.difference(done)):
        yield f"steps: {_some(extra)} recorded, the ledger is at step {header.step}"
    for row in store.execute("SELECT name, step, result, checksum FROM evaluations"):
        if problem := object_problem("result", row):
            yield f"evaluation {row[0]!r} of step {row[1]}: {problem}"
    for row in store.execute("SELECT worker, counters, checksum FROM workers"):
        if problem := object_problem("counters", row):
            yield f"worker {row[0]!r}: {problem}"
    counted = store.execute("SELECT kind, count(*) FROM events GROUP BY kind ORDER BY kind").fetchall()
    if counted != store.execute("SELECT kind, count FROM event_kinds ORDER BY kind").fetchall():
        yield "events: the counts by kind do not agree with them"


def _file_problems(directory: RunDirectory) -> Iterator[str]:
    found = {path: checkpoint_problems(path) for path in list_checkpoints(directory.checkpoints)}
    for path in step_directories(directory.snapshots).values():
        no_config = "" if (path / "config.json").is_file() else f"{path} has no config.json"
        found[path] = [problem for problem in (weights_problem(path / WEIGHTS), no_config) if problem]
    for path, problems in found.items():
        # A run that is being trained removes old ones meanwhile.
        if path.is_dir():
            yield from problems
    newest = directory.snapshots / LATEST
    # It is swapped before the snapshot that it named is removed.
    if newest.is_symlink() and not newest.is_dir():
        yield f"{newest} names {newest.readlink()}, which is not there"


def read(database: sqlite3.Connection, table: str, number: int) -> Sequence[Any]:
    """The row of this number; empty where it is not there, or cannot be read."""
    with suppress(*UNREADABLE):
        return database.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,)).fetchone() or ()
    return ()


def row_problem(values: Sequence[Any], prompt: int) -> str:
    """A sentence on what is wrong with a row of `groups`, whose prompt must be this one; empty where nothing is."""
    if len(values) != len(ROW) + 2:
        return "not there, or not to be read"
    *row, checksum, _ = values
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


def content_problem(header: Header, row: Sequence[Any], values: Sequence[Any]) -> str:
    """A sentence on what is wrong with a row of `contents`, or its absence; empty where nothing is."""
    leased = row[STATE] == "leased"
    if not values:
        pruned = (row[TRAINED_STEP] or header.step + 1) <= header.pruned_step
        return "" if leased or pruned else "without content"
    if leased:
        return "leased, and written already"
    *figures, checksum = row[ROW.index("responses") : len(ROW)]
    try:
        group = read_group(row[1], values[1:], checksum)
    except DamageError as error:
        return str(error)
    if figures_of(group) != tuple(figures):
        return "its figures are not those of its content"
    return channel_problem(header.plan, group)


def object_problem(what: str, row: Sequence[Any]) -> str:
    """A sentence on a row whose last columns are a JSON object and the checksum of all before; empty where it is."""
    *values, checksum = row
    with suppress(ValueError, TypeError, IndexError, RecursionError):
        if isinstance(READERS.get(what, json.loads)(values[-1]), dict | Counters):
            return "" if row_checksum(*values) == checksum else UNSEALED
    return f"its {what} cannot be read"


def _some(numbers: Sequence[int], count: int = 0) -> str:
    """The first few of numbers, and how many more there are; `count` is their number where not all are given."""
    shown, more = ", ".join(map(str, numbers[:SHOWN])), max(count, len(numbers)) - SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
