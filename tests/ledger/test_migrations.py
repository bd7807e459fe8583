"""Ledgers of formats 1 and 2, opened today."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from driftproof import __version__
from driftproof.errors import LedgerError
from driftproof.ledger import codec
from driftproof.ledger.codec import content_checksum, to_row
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.maintenance.check import check_run
from driftproof.ledger.migrations import MIGRATIONS
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import Counters, Plan
from driftproof.ledger.schema import FORMAT_VERSION, SCHEMA
from tests.ledger.made import go_on, group_of, is_original, trained_all_once

FORMATS = {version: Path(__file__).with_name(f"format_{version}.sql").read_text() for version in (1, 2)}
PLAN = '{"seed": 3, "prompts": 7, "groups_per_step": 2, "max_staleness": 1, "steps": 6, "channels": [], "model": "m"}'
CONTENT = ", ".join(codec.CONTENT[:8])
"""Columns that formats 1 and 2 had."""


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def make_old(run: Path, version: int) -> Path:
    """Two steps done, one under way, a group ready, one written anew, one leased; as driftproof wrote it then."""
    run.mkdir(exist_ok=True)
    path = run / "ledger.sqlite"
    order = _order(run)
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(FORMATS[version])
    meta = {"format_version": str(version), "plan": PLAN, "state": "stopping", "step": "2", "durable_step": "2"}
    if version == 2:
        meta |= {"plan_checksum": str(zlib.crc32(PLAN.encode())), "driftproof": "0.1.0"}
        meta |= {"pruned_step": "0", "checked_from": "0", "furthest_step": "3"}
    database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    for dispatch in range(8):
        state = "trained" if dispatch < 6 else "ready" if dispatch == 6 else "leased"
        step = dispatch // 2 + 1 if state == "trained" else None
        row = (dispatch, order[dispatch], state, "a", 5.0, max(dispatch // 2 - 1, 0), step)
        content = to_row(group_of(dispatch, order[dispatch]))
        row += content[:8] if state != "leased" else (None,) * 8
        if version == 2:
            row += (content_checksum(content) if state != "leased" else None,)
        database.execute(f"INSERT INTO groups VALUES ({', '.join('?' * len(row))})", row)
    database.executemany("INSERT INTO steps VALUES (?, ?)", [(1, '{"reward": 0.5}'), (2, '{"reward": 1.0}')])
    database.execute("INSERT INTO evaluations VALUES ('heldout', 0, '{\"sampled\": 0.5}')")
    counters = '{"tokens": 3, "busy_seconds": 1.5, "engine/steps": 7, "snapshot": 2}'
    database.execute("INSERT INTO workers VALUES ('a', ?)", (counters,))
    events = [(1.0, 0, "late commit", "first"), (2.0, 1, "other", "one"), (3.0, 1, "late commit", "last")]
    database.executemany("INSERT INTO events (time, step, kind, message) VALUES (?, ?, ?, ?)", events)
    if version == 2:
        database.execute("INSERT INTO event_kinds VALUES ('late commit', 2, 'last'), ('other', 1, 'one')")
    database.commit()
    database.close()
    return path


def _order(run: Path) -> list[int]:
    plan = Plan(seed=3, prompts=7, groups_per_step=2, max_staleness=1, steps=6)
    with Ledger.create(run / "other.sqlite", plan) as ledger:
        order = [ledger.prompt_of(n) for n in range(12)]
    (run / "other.sqlite").unlink()
    return order


def contents(path: Path) -> dict[str, list[Any]]:
    """Everything that a ledger of format 1 holds, of a ledger of any format."""
    with sqlite3.connect(path) as database:
        columns = f"dispatch, prompt_index, state, worker, deadline, dispatched_step, trained_step, {CONTENT}"
        new = "contents" in {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        tables = {"groups LEFT JOIN contents USING (dispatch)" if new else "groups": columns, "events": "*"}
        tables |= {"steps": "step, metrics", "evaluations": "name, step, result", "workers": "worker, counters"}
        found = [database.execute(f"SELECT {what} FROM {table}").fetchall() for table, what in tables.items()]
        kept = "WHERE key IN ('plan', 'state', 'step', 'durable_step')"
        found.append(database.execute(f"SELECT key, value FROM meta {kept}").fetchall())
    database.close()
    return dict(zip((*(name.split()[0] for name in tables), "meta"), found, strict=True))


def test_an_older_ledger_is_migrated_when_it_is_opened_and_everything_is_as_before(
    tmp_path: Path, version: int
) -> None:
    path = make_old(tmp_path, version)
    assert check_run(tmp_path).findings == ()
    before = contents(path)
    with Ledger(path) as ledger:
        _check_what_it_holds(ledger)
    assert contents(path) == before
    with sqlite3.connect(path) as database:
        meta = dict(database.execute("SELECT key, value FROM meta"))
        assert (meta["format_version"], meta["driftproof"]) == (str(FORMAT_VERSION), __version__)
        unchecked = database.execute("SELECT count(*) FROM groups WHERE content_checksum IS NULL").fetchone()
        assert unchecked == ((8 if version == 1 else 1),)
    database.close()
    assert check_run(tmp_path).findings == ()


def _check_what_it_holds(ledger: LedgerReader) -> None:
    assert (ledger.step, ledger.state(), ledger.plan.model, ledger.plan.publish_every) == (2, "stopping", "m", 0)
    assert ledger.events() == {"late commit": (2, "last"), "other": (1, "one")}
    assert ledger.workers() == {"a": Counters(tokens=3, busy_seconds=1.5, snapshot=2, engine={"steps": 7})}
    assert ledger.steps() == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 1.0}]
    assert ledger.evaluations() == {"heldout": {0: {"sampled": 0.5}}}
    records = list(ledger.records())
    assert [record.dispatch for record in records] == list(range(7))
    assert all(is_original(record.group, record.dispatch) for record in records)
    assert [(record.responses, record.tokens, record.mean_reward) for record in records] == [(8, 64, 0.5)] * 7
    assert {record.weights_step for record in records} == {None}
    assert [(group.dispatch, group.age) for group in ledger.browse("age", limit=2)] == [(5, 1), (4, 1)]


def test_a_reader_migrates_a_copy_of_its_own(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    before = path.read_bytes()
    with LedgerReader(path) as reader:
        _check_what_it_holds(reader)
    assert path.read_bytes() == before


def test_its_tables_are_then_those_of_a_new_one(tmp_path: Path, version: int) -> None:
    Ledger(make_old(tmp_path, version)).close()
    assert tables_of(sqlite3.connect(tmp_path / "ledger.sqlite")) == tables_of(new_tables())


def new_tables() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.executescript(SCHEMA)
    return database


def tables_of(database: sqlite3.Connection) -> dict[str, Any]:
    names = database.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
    found = {name: (kind, database.execute(f"PRAGMA table_info({name})").fetchall()) for kind, name in names.fetchall()}
    database.close()
    return found


def test_the_run_goes_on_and_new_groups_have_a_checksum(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    with Ledger(path) as ledger:
        assert ledger.rewind(2) == 2
        go_on(tmp_path, ledger, 6)
        trained_all_once(ledger)
        assert all(is_original(record.group, record.dispatch) for record in ledger.records())
        weights = [(record.weights_step, record.dispatched_step) for record in ledger.records()]
    assert [step for step, _ in weights[:7]] == [None] * 7
    assert all(step == dispatched for step, dispatched in weights[7:])
    database = sqlite3.connect(path)
    found = database.execute("SELECT dispatch FROM groups WHERE content_checksum IS NULL ORDER BY 1").fetchall()
    database.close()
    assert [dispatch for (dispatch,) in found] == (list(range(7)) if version == 1 else [])
    assert check_run(tmp_path).findings == ()


OPEN = (
    "import sys; from pathlib import Path; from driftproof.ledger.ledger import Ledger; "
    "print(Ledger(Path(sys.argv[1])).step)"
)


def test_processes_that_open_it_at_once_find_it_migrated(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    # Nobody can begin before all have started.
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    with pytest.raises(subprocess.TimeoutExpired):
        processes[0].wait(1.0)
    holder.execute("COMMIT")
    holder.close()
    assert [process.communicate(timeout=300)[0].strip() for process in processes] == ["2"] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert check_run(tmp_path).findings == ()


KILLED = """
import os, signal, sys
from pathlib import Path
from driftproof.ledger import migrations
from driftproof.ledger.ledger import Ledger

version, position = int(sys.argv[2]), int(sys.argv[3])
migration = migrations.MIGRATIONS[version]

def deadly(database):
    seen = []
    def count(statement):
        seen.append(statement)
        if len(seen) == position:
            os.kill(os.getpid(), signal.SIGKILL)
    database.set_trace_callback(count)
    migration(database)
    # Before it is committed.
    os.kill(os.getpid(), signal.SIGKILL)

migrations.MIGRATIONS = migrations.MIGRATIONS | {version: deadly}
Ledger(Path(sys.argv[1]))
"""


def test_a_kill_in_the_middle_of_the_migration_leaves_it_as_it_was(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path / "whole", version)
    before = contents(path)
    positions = (2, 10, 40, 1000)
    runs = [Path(shutil.copytree(tmp_path / "whole", tmp_path / str(position))) for position in positions]
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(run / "ledger.sqlite"), str(version), str(position)])
        for run, position in zip(runs, positions, strict=True)
    ]
    assert [process.wait(300) for process in processes] == [-signal.SIGKILL] * len(positions)
    for run in runs:
        assert {name.name for name in run.iterdir()} >= {"ledger.sqlite", "ledger.sqlite-wal"}
        assert contents(run / "ledger.sqlite") == before
        with Ledger(run / "ledger.sqlite") as ledger:
            assert ledger.events()["late commit"] == (2, "last")
        assert check_run(run).findings == ()


def test_a_failed_migration_leaves_it_as_it_was(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_old(tmp_path, version)
    before = contents(path)

    def broken(database: sqlite3.Connection) -> None:
        MIGRATIONS[version](database)
        database.execute("INSERT INTO nowhere VALUES (1)")

    with monkeypatch.context() as patch:
        patch.setattr("driftproof.ledger.migrations.MIGRATIONS", {**MIGRATIONS, version: broken})
        message = rf"has ledger format {version} and cannot be brought to 3: no such table: nowhere"
        with pytest.raises(LedgerError, match=message):
            Ledger(path)
    assert contents(path) == before
    Ledger(path).close()


@pytest.mark.parametrize("column", ["rewards", "finish_reasons", "response_tokens"])
def test_a_group_that_was_damaged_before_is_damaged_afterwards(tmp_path: Path, version: int, column: str) -> None:
    path = make_old(tmp_path, version)
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE groups SET {column} = 'x' WHERE dispatch = 6")
    database.close()
    with Ledger(path) as ledger, pytest.raises(LedgerError, match=r"is damaged \(group 6: "):
        list(ledger.records())


def test_opening_for_a_check_migrates_nothing(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    before, files = path.read_bytes(), set(tmp_path.iterdir())
    assert check_run(tmp_path).findings == ()
    assert (path.read_bytes(), set(tmp_path.iterdir())) == (before, files)


def test_a_plan_that_says_what_is_not_known_is_refused(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    database = sqlite3.connect(path)
    database.execute("UPDATE meta SET value = replace(value, '\"model\"', '\"mirror\"') WHERE key = 'plan'")
    database.execute("DELETE FROM meta WHERE key = 'plan_checksum'")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match=r"has mirror, which driftproof .* does not know; it was made by driftproof"):
        Ledger(path)
