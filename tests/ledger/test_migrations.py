"""Ledgers of format 1, opened today."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from driftproof import __version__
from driftproof.errors import LedgerError
from driftproof.ledger.maintenance.check import check_run
from driftproof.ledger.migrations import MIGRATIONS
from driftproof.ledger.schema import CONTENT, FORMAT_VERSION, SCHEMA, to_row
from driftproof.ledger.store import Ledger, Plan
from tests.ledger.made import go_on, group_of, is_original, trained_all_once

FORMAT_1 = Path(__file__).with_name("format_1.sql").read_text()
PLAN = '{"seed": 3, "prompts": 7, "groups_per_step": 2, "max_staleness": 1, "steps": 6, "channels": [], "model": "m"}'


def make_old(run: Path) -> Path:
    """Two steps done, one under way, a group ready, one written anew, one leased; as driftproof wrote it then."""
    run.mkdir(exist_ok=True)
    path = run / "ledger.sqlite"
    order = _order(run)
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(FORMAT_1)
    meta = {"format_version": "1", "plan": PLAN, "state": "stopping", "step": "2", "durable_step": "2"}
    database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    for dispatch in range(8):
        state = "trained" if dispatch < 6 else "ready" if dispatch == 6 else "leased"
        step = dispatch // 2 + 1 if state == "trained" else None
        fixed = (dispatch, order[dispatch], state, "a", 5.0, max(dispatch // 2 - 1, 0), step)
        content = to_row(group_of(dispatch, order[dispatch])) if state != "leased" else (None,) * 8
        database.execute(f"INSERT INTO groups VALUES ({', '.join('?' * 15)})", (*fixed, *content))
    database.executemany("INSERT INTO steps VALUES (?, ?)", [(1, '{"reward": 0.5}'), (2, '{"reward": 1.0}')])
    database.execute("INSERT INTO evaluations VALUES ('heldout', 0, '{\"sampled\": 0.5}')")
    database.execute("INSERT INTO workers VALUES ('a', '{\"tokens\": 3}')")
    events = [(1.0, 0, "late commit", "first"), (2.0, 1, "other", "one"), (3.0, 1, "late commit", "last")]
    database.executemany("INSERT INTO events (time, step, kind, message) VALUES (?, ?, ?, ?)", events)
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
    """Everything that a ledger of format 1 holds."""
    with sqlite3.connect(path) as database:
        columns = f"dispatch, prompt_index, state, worker, deadline, dispatched_step, trained_step, {CONTENT}"
        tables = {"groups": columns} | dict.fromkeys(("steps", "evaluations", "workers", "events"), "*")
        found = {table: database.execute(f"SELECT {what} FROM {table}").fetchall() for table, what in tables.items()}
        kept = "WHERE key IN ('plan', 'state', 'step', 'durable_step')"
        found["meta"] = database.execute(f"SELECT * FROM meta {kept}").fetchall()
    database.close()
    return found


def test_an_older_ledger_is_migrated_when_it_is_opened_and_everything_is_as_before(tmp_path: Path) -> None:
    path = make_old(tmp_path)
    assert check_run(tmp_path).findings == ()
    before = contents(path)
    with Ledger(path) as ledger:
        assert (ledger.step, ledger.state, ledger.plan.model) == (2, "stopping", "m")
        assert ledger.events() == {"late commit": (2, "last"), "other": (1, "one")}
        records = list(ledger.records())
        assert [record.dispatch for record in records] == list(range(7))
        assert all(is_original(record.group, record.dispatch) for record in records)
    assert contents(path) == before
    with sqlite3.connect(path) as database:
        meta = dict(database.execute("SELECT * FROM meta"))
        assert (meta["format_version"], meta["driftproof"]) == (str(FORMAT_VERSION), __version__)
        assert database.execute("SELECT count(*) FROM groups WHERE checksum IS NOT NULL").fetchone() == (0,)
    database.close()
    assert check_run(tmp_path).findings == ()


def test_its_tables_are_then_those_of_a_new_one(tmp_path: Path) -> None:
    Ledger(make_old(tmp_path)).close()
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


def test_the_run_goes_on_and_new_groups_have_a_checksum(tmp_path: Path) -> None:
    path = make_old(tmp_path)
    with Ledger(path) as ledger:
        assert ledger.rewind(2) == 2
        go_on(tmp_path, ledger, 6)
        trained_all_once(ledger)
        assert all(is_original(record.group, record.dispatch) for record in ledger.records())
    database = sqlite3.connect(path)
    found = database.execute("SELECT dispatch FROM groups WHERE checksum IS NULL ORDER BY 1").fetchall()
    database.close()
    assert [dispatch for (dispatch,) in found] == list(range(7))
    assert check_run(tmp_path).findings == ()


OPEN = (
    "import sys; from pathlib import Path; from driftproof.ledger.store import Ledger; "
    "print(Ledger(Path(sys.argv[1])).step)"
)


def test_processes_that_open_it_at_once_find_it_migrated(tmp_path: Path) -> None:
    path = make_old(tmp_path)
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
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["2"] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert check_run(tmp_path).findings == ()


KILLED = """
import os, signal, sys
from pathlib import Path
from driftproof.ledger import migrations
from driftproof.ledger.store import Ledger

class Deadly(tuple):
    def __iter__(self):
        for position, statement in enumerate(tuple.__iter__(self)):
            if position == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield statement

migrations.MIGRATIONS = {1: Deadly(migrations.MIGRATIONS[1])}
Ledger(Path(sys.argv[1]))
"""


def test_a_kill_in_the_middle_of_the_migration_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = make_old(tmp_path / "whole")
    before = contents(path)
    positions = range(1, len(MIGRATIONS[1]))
    runs = [Path(shutil.copytree(tmp_path / "whole", tmp_path / str(position))) for position in positions]
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(run / "ledger.sqlite"), str(position)])
        for run, position in zip(runs, positions, strict=True)
    ]
    assert [process.wait(60) for process in processes] == [-signal.SIGKILL] * len(positions)
    for run in runs:
        assert {name.name for name in run.iterdir()} >= {"ledger.sqlite", "ledger.sqlite-wal"}
        assert contents(run / "ledger.sqlite") == before
        with Ledger(run / "ledger.sqlite") as ledger:
            assert ledger.events()["late commit"] == (2, "last")
        assert check_run(run).findings == ()


def test_a_failed_migration_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_old(tmp_path)
    before = contents(path)
    broken = {1: (*MIGRATIONS[1], "INSERT INTO nowhere VALUES (1)")}
    with monkeypatch.context() as patch:
        patch.setattr("driftproof.ledger.migrations.MIGRATIONS", broken)
        with pytest.raises(
            LedgerError, match=r"has ledger format 1 and cannot be brought to 2: no such table: nowhere"
        ):
            Ledger(path)
    assert contents(path) == before
    Ledger(path).close()


def test_opening_for_a_check_migrates_nothing(tmp_path: Path) -> None:
    path = make_old(tmp_path)
    before, files = path.read_bytes(), set(tmp_path.iterdir())
    assert check_run(tmp_path).findings == ()
    assert (path.read_bytes(), set(tmp_path.iterdir())) == (before, files)


def test_a_plan_that_says_what_is_not_known_is_refused(tmp_path: Path) -> None:
    path = make_old(tmp_path)
    database = sqlite3.connect(path)
    database.execute("UPDATE meta SET value = replace(value, '\"model\"', '\"mirror\"') WHERE key = 'plan'")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match=r"has mirror, which driftproof .* does not know; it was made by driftproof"):
        Ledger(path)
