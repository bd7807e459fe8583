"""Real damage to real ledgers: what is saved is right, and the run goes on."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.cli.main import main
from driftproof.errors import ConfigError, LedgerError, UnavailableError
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.maintenance.check import Header, check_run
from driftproof.ledger.maintenance.repair import Repair, plan_repair, repair_run
from driftproof.ledger.records import Plan
from driftproof.run import locked
from tests.ledger.made import (
    PER_STEP,
    STALENESS,
    files_of,
    files_of_at_most,
    go_on,
    is_original,
    make_checkpoint,
    make_run,
    resume,
    trained_all_once,
)
from tests.ledger.test_migrations import make_old
from tests.runtime import runs

FILES = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm")
PAGE = 4096
SEEDS = 5
PLAN = Plan(seed=3, prompts=17, groups_per_step=PER_STEP, max_staleness=STALENESS, steps=40)
"""Plan of the runs that are made here."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def overwrite_pages(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(generator.randint(1, 3)):
        page = generator.randrange(len(content) // PAGE)
        content[page * PAGE : (page + 1) * PAGE] = generator.randbytes(PAGE)
    path.write_bytes(content)


def overwrite_bytes(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(generator.randint(1, 200)):
        content[generator.randrange(len(content))] = generator.randrange(256)
    path.write_bytes(content)


def zero_pages(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = generator.randrange(len(content) // PAGE)
    end = min(start + generator.randint(1, 8), len(content) // PAGE)
    content[start * PAGE : end * PAGE] = bytes((end - start) * PAGE)
    path.write_bytes(content)


def truncate(path: Path, generator: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def swap_pages(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    one, other = (generator.randrange(len(content) // PAGE) * PAGE for _ in range(2))
    content[one : one + PAGE], content[other : other + PAGE] = content[other : other + PAGE], content[one : one + PAGE]
    path.write_bytes(content)


def repaired_is_right(run: Path) -> Repair | None:
    """Repair, then: nothing is wrong, nothing was made up, and the run comes to its end. None: nothing was wrong."""
    before = files_of(run, FILES)
    done = repair_run(run, plan_anew=lambda: PLAN)
    assert check_run(run).findings == ()
    if done is not None:
        assert done.kept.read_bytes() == before["ledger.sqlite"]
    with resume(run) as ledger:
        records = list(ledger.records())
        assert all(is_original(record.group, record.dispatch) for record in records)
        trained = [group.dispatch for group in ledger.browse("oldest", limit=1000) if group.trained_step]
        assert trained == list(range(ledger.step * PER_STEP)), "the run took its groups in their order"
        assert done is None or len(records) == done.saved
        go_on(run, ledger, ledger.plan.steps)
        trained_all_once(ledger)
        assert all(is_original(record.group, record.dispatch) for record in ledger.records())
    assert check_run(run).findings == ()
    return done


@pytest.mark.parametrize("damage", [overwrite_pages, overwrite_bytes, zero_pages, truncate, swap_pages])
def test_random_damage(sound: Path, tmp_path: Path, damage: Callable[[Path, random.Random], None]) -> None:
    repaired = 0
    for seed in range(SEEDS):
        run = Path(shutil.copytree(sound, tmp_path / str(seed)))
        damage(run / "ledger.sqlite", random.Random(seed))
        repaired += repaired_is_right(run) is not None
    assert repaired > 1


def change(run: Path, statement: str) -> None:
    database = sqlite3.connect(run / "ledger.sqlite")
    database.execute("PRAGMA writable_schema = ON")
    assert database.execute(statement).rowcount > 0
    database.commit()
    database.close()


def test_a_sound_ledger_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run, FILES)
    assert main(["ledger", "repair", str(run)]) == 0
    assert "nothing is wrong with the ledger of" in capsys.readouterr().out
    assert (files_of(run, FILES), list(run.glob("*.damaged*"))) == (before, [])


def test_a_step_that_a_checkpoint_has_learned_stays_done_without_its_group(run: Path) -> None:
    change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 9")
    change(run, "DELETE FROM groups WHERE dispatch IN (40, 41)")
    change(run, "DELETE FROM steps WHERE step = 7")
    done = repaired_is_right(run)
    assert done is not None
    assert (done.step, done.step_before, done.saved, done.lost) == (23, 23, 99, 3)


def test_a_step_after_the_checkpoint_is_undone_where_a_group_of_it_is_lost(run: Path) -> None:
    change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 85")
    done = repair_run(run)
    assert done is not None
    assert (done.step, done.step_before, done.saved, done.lost) == (20, 23, 101, 0)
    with Ledger(run / "ledger.sqlite") as ledger:
        assert [lease.dispatch for lease in ledger.lease("b", 9, 1000.0)] == [85, 102, 103]
    assert repair_run(run) is None


def header_of(plan: Plan, step: int, pruned_step: int = 0) -> Header:
    return Header(plan, {"state": "running", "step": str(step), "pruned_step": str(pruned_step)})


def test_a_step_that_stays_done_is_filled_by_the_oldest_group_that_nothing_is_known_of() -> None:
    """Group 5 is known not to be trained yet, 1 and 4 are lost."""
    plan = Plan(seed=3, prompts=17, groups_per_step=2, max_staleness=1, steps=9)
    rows = {0: 1, 2: 1, 3: 2, 5: None}
    assert plan_repair(header_of(plan, 2), 2, rows, rows) == (2, {0: 1, 2: 1, 3: 2, 1: 2})


@given(data=st.data())
def test_whatever_is_lost_each_step_done_has_its_groups_and_none_is_trained_twice(data: st.DataObject) -> None:
    size, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    plan = Plan(seed=3, prompts=17, groups_per_step=size, max_staleness=2, steps=steps)
    step = data.draw(st.integers(0, steps))
    order = data.draw(st.permutations(range(min(step + 2, steps) * size)))
    history = {n: place // size + 1 for place, n in enumerate(order[: step * size])}
    rows = {n for n in order if data.draw(st.booleans())}
    whole = {n for n in rows if data.draw(st.booleans())}
    base, pruned_step = data.draw(st.integers(0, steps)), data.draw(st.integers(0, step))
    read = {n: history.get(n) for n in sorted(rows)}
    done, trained = plan_repair(header_of(plan, step, pruned_step), base, read, whole)
    assert done in (step, base)
    assert done >= base
    assert all(list(trained.values()).count(k) == size for k in range(1, done + 1))
    assert len(trained) == done * size
    survivors = {n: k for n, k in read.items() if k is not None and k <= done}
    assert survivors.items() <= trained.items()
    if done > base:
        assert {n: k for n, k in history.items() if k > base} == {n: k for n, k in trained.items() if k > base}


def test_a_write_ahead_log_that_was_deleted(tmp_path: Path) -> None:
    """The ledger is older than its newest checkpoint: what that has learned is not learned again."""
    run = make_run(tmp_path / "run", steps=12)
    (run / "early.sqlite").write_bytes((run / "ledger.sqlite").read_bytes())
    with resume(run) as ledger:
        go_on(run, ledger, 31)
    (run / "early.sqlite").rename(run / "ledger.sqlite")
    assert "has a checkpoint of step 30, the ledger is at step 12" in check_run(run).findings[-1]
    done = repaired_is_right(run)
    assert done is not None
    assert (done.step, done.step_before) == (30, 12)


def test_what_is_in_the_write_ahead_log_is_saved(run: Path) -> None:
    """A run that was killed leaves its newest groups there."""
    killed = run.with_name("killed")
    with resume(run) as ledger:
        go_on(run, ledger, 30)
        change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 9")
        shutil.copytree(run, killed)
    assert (killed / "ledger.sqlite-wal").stat().st_size > 0
    log = (killed / "ledger.sqlite-wal").read_bytes()
    done = repair_run(killed)
    assert done is not None
    assert (done.step, done.lost) == (30, 1)
    assert (killed / "ledger.sqlite.damaged-wal").read_bytes() == log
    assert check_run(killed).findings == ()


def test_a_repair_that_was_killed_in_the_middle_is_begun_anew(run: Path) -> None:
    change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 9")
    (run / "ledger.sqlite.damaged").hardlink_to(run / "ledger.sqlite")
    (run / "ledger.sqlite.damaged-wal").write_bytes(b"")
    done = repaired_is_right(run)
    assert done is not None
    assert done.kept.name == "ledger.sqlite.damaged"
    assert not list(run.glob(".repair-*"))


def test_the_repaired_ledger_is_put_elsewhere_where_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 9")
    before = files_of(run, FILES)
    output = run / "new.sqlite"
    assert main(["ledger", "repair", str(run), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "saved      101 groups; what 1 trained ones held is lost\n" in said
    assert f"repaired   {output}\n" in said
    assert files_of(run, FILES) == before
    with Ledger(output) as ledger:
        assert len(list(ledger.records())) == 101
    assert main(["ledger", "repair", str(run), "--output", str(output)]) == 1
    assert "exists already; name a new file" in capsys.readouterr().err


def test_repair_is_refused_while_the_run_is_worked_on(run: Path) -> None:
    change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 9")
    with locked(run), pytest.raises(UnavailableError, match=r"is in use by another driftproof"):
        repair_run(run)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_repair_on_a_full_disk_changes_nothing(run: Path, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, "UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 9")
    before = files_of(run, FILES)
    with files_of_at_most(int(len(before["ledger.sqlite"]) * share)):
        assert main(["ledger", "repair", str(run)]) == 1
    assert "A repair needs space" in capsys.readouterr().err
    assert files_of(run, FILES) == before
    assert {path.name for path in run.iterdir()} == {"ledger.sqlite", "checkpoints", "lock", "processes.lock"}
    assert repair_run(run) is not None


@pytest.mark.parametrize("table", ["groups", "contents", "steps", "meta", "evaluations", "workers", "events"])
def test_a_table_whose_columns_are_lost(run: Path, table: str) -> None:
    change(
        run, f"UPDATE sqlite_master SET sql = 'CREATE TABLE {table} (one INTEGER PRIMARY KEY)' WHERE name = '{table}'"
    )
    done = repaired_is_right(run)
    assert done is not None
    assert done.step == (20 if table in ("groups", "contents", "meta") else 23)


def test_a_second_repair_keeps_what_the_first_kept(run: Path) -> None:
    for _ in range(2):
        change(run, "UPDATE contents SET rewards = zeroblob(8) WHERE dispatch = (SELECT max(dispatch) - 3 FROM groups)")
        assert repair_run(run) is not None
        with resume(run) as ledger:
            go_on(run, ledger, ledger.step + 1)
    assert {path.name for path in run.glob("*.damaged*")} == {"ledger.sqlite.damaged", "ledger.sqlite.damaged-2"}


@pytest.mark.parametrize("content", [b"", b"nothing" * 3000, bytes(40960)])
def test_where_nothing_can_be_read_the_run_starts_again_from_its_checkpoint(run: Path, content: bytes) -> None:
    (run / "ledger.sqlite").write_bytes(content)
    done = repaired_is_right(run)
    assert done is not None
    assert (done.step, done.saved, done.lost) == (20, 0, 80)
    assert "step       20: no group can be saved; the run starts again from its newest checkpoint" in done.lines()[1]
    assert (run / "ledger.sqlite.damaged").read_bytes() == content


def test_without_a_checkpoint_it_starts_from_the_beginning(run: Path) -> None:
    (run / "ledger.sqlite").write_bytes(b"")
    shutil.rmtree(run / "checkpoints")
    done = repaired_is_right(run)
    assert done is not None
    assert (done.step, done.saved, done.lost) == (0, 0, 0)


def test_without_a_plan_groups_are_saved_by_that_of_the_recipe(run: Path) -> None:
    change(run, "UPDATE meta SET value = '?' WHERE key = 'plan'")
    done = repaired_is_right(run)
    assert done is not None
    assert (done.step, done.step_before, done.saved) == (23, 23, 102)


def test_groups_of_another_plan_are_not_saved(run: Path) -> None:
    change(run, "UPDATE meta SET value = '?' WHERE key = 'plan'")
    done = repair_run(run, plan_anew=lambda: replace(PLAN, seed=4))
    assert done is not None
    assert done.saved < 20


def test_without_any_plan_nothing_can_be_saved(run: Path) -> None:
    def refuse() -> Plan:
        raise ConfigError("there is no config.toml")

    (run / "ledger.sqlite").write_bytes(b"")
    for plan_anew, reason in ((None, "cannot be read"), (refuse, "nor made anew from its recipe .there is no config")):
        with pytest.raises(LedgerError, match=f"nothing of .* can be saved: .*{reason}"):
            repair_run(run, plan_anew=plan_anew)
        assert (run / "ledger.sqlite").read_bytes() == b""
    assert not list(run.glob("*.damaged*"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_ledger_of_an_older_format_starts_again_from_its_checkpoint(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    make_checkpoint(tmp_path / "checkpoints", 2)
    database = sqlite3.connect(path)
    database.execute("UPDATE groups SET rewards = x'00' WHERE dispatch = 1")
    database.commit()
    database.close()
    before = path.read_bytes()
    done = repair_run(tmp_path)
    assert done is not None
    assert (done.step, done.saved, done.lost, done.kept.read_bytes() == before) == (2, 0, 4, True)
    with resume(tmp_path) as ledger:
        go_on(tmp_path, ledger, 6)
        trained_all_once(ledger)
    assert check_run(tmp_path).findings == ()


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_one_that_cannot_be_read_starts_again_by_its_own_plan(tmp_path: Path, version: int) -> None:
    path = make_old(tmp_path, version)
    make_checkpoint(tmp_path / "checkpoints", 2)
    path.write_bytes(path.read_bytes()[: 2 * PAGE] + bytes(path.stat().st_size - 2 * PAGE))
    done = repair_run(tmp_path)
    assert done is not None
    assert (done.step, done.step_before, done.saved) == (2, 2, 0)
    with resume(tmp_path) as ledger:
        go_on(tmp_path, ledger, 6)
        trained_all_once(ledger)


def test_a_ledger_of_a_newer_format_is_left_alone(run: Path) -> None:
    database = sqlite3.connect(run / "ledger.sqlite")
    database.execute(
        "UPDATE meta SET value = '4', checksum = ? WHERE key = 'format_version'", (row_checksum("format_version", "4"),)
    )
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="has ledger format 4, made by driftproof"):
        repair_run(run, plan_anew=lambda: PLAN)
    assert not list(run.glob("*.damaged*"))


def lose_log(ledger: Path) -> None:
    ledger.with_name("ledger.sqlite-wal").write_bytes(b"")


def lose_pages(ledger: Path) -> None:
    content = bytearray(ledger.read_bytes())
    for page in range(3, len(content) // PAGE, 2):
        content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    ledger.write_bytes(content)


def lose_header(ledger: Path) -> None:
    ledger.write_bytes(bytes(PAGE) + ledger.read_bytes()[PAGE:])


def test_a_real_run_goes_on_after_its_log_its_pages_and_its_header_are_lost(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(runs.__file__).parent))
    run = tmp_path / "run"
    recipe = runs.write_recipe(tmp_path, tiny_model_dir)
    process = runs.launch(recipe, "--run.directory", run, "--run.steps", 2000, "--evaluation.prompts", 0)
    runs.wait_for_step(run, 5, process)
    for pid in (process.pid, *runs.processes(run).values()):
        runs.kill(pid)
    process.communicate()
    for lose, answer in (
        (lose_log, "the ledger knows only"),
        (lose_pages, "is damaged"),
        (lose_header, "is not a driftproof ledger"),
    ):
        lose(run / "ledger.sqlite")
        refused = runs.train("--resume", run)
        assert refused.code in (1, 2)
        assert answer in refused.stderr
        assert f"driftproof ledger repair {run}" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert main(["ledger", "check", str(run)]) == 1
        capsys.readouterr()
        assert main(["ledger", "repair", str(run)]) == 0
        assert "starts again from its newest checkpoint" in capsys.readouterr().out or lose is not lose_header
        assert main(["ledger", "check", str(run)]) == 0
        with Ledger(run / "ledger.sqlite") as ledger:
            steps = ledger.step + 2
        done = runs.train("--resume", run, "--run.steps", steps)
        assert done.code == 0, done.stderr
        with Ledger(run / "ledger.sqlite") as ledger:
            trained_all_once(ledger)
    assert main(["ledger", "check", str(run)]) == 0
