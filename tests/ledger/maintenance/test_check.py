"""`check` finds what is wrong, whatever it is, and leaves everything as it was."""

import json
import random
import shutil
import sqlite3
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from driftproof.cli.main import main
from driftproof.errors import UnavailableError
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.maintenance.check import check_run
from driftproof.ledger.schema import ROW
from tests.ledger.made import go_on, make_checkpoint, make_run, safetensors

SEALED = {
    "meta": ("key", "value"),
    "groups": ROW,
    "steps": ("step", "metrics"),
    "evaluations": ("name", "step", "result"),
    "workers": ("worker", "counters"),
}
"""Columns of each table that its checksum covers."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("sound") / "run")
    snapshot = run / "snapshots" / "step-00000023"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(safetensors(8))
    (snapshot / "config.json").write_text("{}")
    (run / "snapshots" / "latest").symlink_to(snapshot.name)
    return run


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run", symlinks=True))


def change(run: Path, statement: str, *, sealed: bool = False) -> None:
    """Change rows behind the ledger's back; `sealed` gives every row the checksum of what it holds then."""
    with sqlite3.connect(run / "ledger.sqlite") as database:
        database.create_function("row_checksum", -1, row_checksum)
        assert database.execute(statement).rowcount > 0
        for table, columns in SEALED.items() if sealed else ():
            database.execute(f"UPDATE {table} SET checksum = row_checksum({', '.join(columns)})")
    database.close()


def test_a_sound_run_has_nothing_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    assert main(["ledger", "check", str(run)]) == 0
    assert capsys.readouterr().out == "104 groups, 23 steps: nothing is wrong\n"
    assert main(["ledger", "check", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"groups": 104, "steps": 23, "findings": []}
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM groups WHERE dispatch IN (7, 8, 9)", "groups 7, 8, 9: not there"),
        ("UPDATE groups SET prompt_index = 99 WHERE dispatch = 4", "groups 4: of prompt 99, where the permutation"),
        ("UPDATE contents SET rewards = zeroblob(64) WHERE dispatch = 4", "groups 4: its checksum does not agree"),
        ("DELETE FROM contents WHERE dispatch = 4", "groups 4: without content"),
        ("UPDATE contents SET dispatch = 999 WHERE dispatch = 4", "contents: 1 of groups that are not there"),
        ("UPDATE groups SET state = 'leased', trained_step = NULL WHERE dispatch = 4", "groups 4: leased, and written"),
        (
            "UPDATE groups SET mean_reward = 0.25 WHERE dispatch = 4",
            "groups 4: its figures are not those of",
        ),
        ("UPDATE groups SET tokens = 63 WHERE dispatch = 4", "groups 4: its figures are not those of"),
        (
            "UPDATE groups SET weights_step = 9 WHERE dispatch = 4",
            "groups 4: dispatched with weights that",
        ),
        ("UPDATE groups SET worker = '' WHERE state = 'leased'", "groups 102, 103: leased by nobody"),
        ("UPDATE groups SET trained_step = 9 WHERE dispatch = 4", "steps 2, 9: trained other than 4 groups"),
        ("UPDATE groups SET trained_step = 40 WHERE dispatch = 4", "steps 40: trained groups, and are not there"),
        ("UPDATE groups SET trained_step = NULL WHERE dispatch = 4", "groups 4: trained in no step"),
        ("UPDATE groups SET dispatched_step = -4 WHERE dispatch = 4", "groups 4: dispatched in a step that never was"),
        (
            "UPDATE groups SET trained_step = 3 WHERE state = 'ready'",
            "groups 96, 97, 98, 99, 100 and 1 more: trained in no step",
        ),
        ("UPDATE groups SET trained_step = 25 WHERE dispatch = 92", "step 24: under way with 3 groups, not 4"),
        ("DELETE FROM steps WHERE step = 3", "steps: 3 not recorded"),
        ("INSERT INTO steps VALUES (24, '{}', 0)", "steps: 24 recorded, the ledger is at step 23"),
        ("UPDATE steps SET metrics = '[1' WHERE step = 3", "step 3: its metrics cannot be read"),
        ("UPDATE meta SET value = '99' WHERE key = 'step'", "meta: step is 99 of 40"),
        ("UPDATE meta SET value = 'gone' WHERE key = 'state'", "meta: state is 'gone'"),
        ("UPDATE meta SET value = '30' WHERE key = 'pruned_step'", "meta: groups are pruned up to step 30, beyond"),
        ("UPDATE meta SET value = '99' WHERE key = 'format_version'", "has ledger format 99, made by driftproof"),
        ("UPDATE meta SET value = '29' WHERE key = 'published_step'", "meta: weights are published of step 29, beyond"),
        ("DELETE FROM meta WHERE key = 'plan'", "the plan cannot be read"),
        ("UPDATE event_kinds SET count = 9", "events: the counts by kind do not agree"),
        ("UPDATE workers SET counters = '?'", "worker 'a': its counters cannot be read"),
        ("UPDATE evaluations SET result = '?'", "evaluation 'heldout' of step 0: its result cannot be read"),
    ],
)
def test_what_is_wrong_is_found(run: Path, capsys: pytest.CaptureFixture[str], statement: str, finding: str) -> None:
    change(run, statement, sealed=True)
    assert main(["ledger", "check", str(run)]) == 1
    assert finding in capsys.readouterr().out


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE steps SET metrics = replace(metrics, '1.5', '1.7') WHERE step = 3", "step 3: its checksum does not"),
        (
            "UPDATE steps SET metrics = replace(metrics, ': 1.5', ' 1.5') WHERE step = 3",
            "step 3: its metrics cannot",
        ),
        (
            "UPDATE evaluations SET result = '{\"sampled\": 0.7}'",
            "evaluation 'heldout' of step 0: its checksum",
        ),
        ("UPDATE evaluations SET step = 1", "evaluation 'heldout' of step 1: its checksum does not agree"),
        ("UPDATE workers SET counters = replace(counters, '3', '2')", "worker 'a': its checksum does not agree"),
        ("UPDATE workers SET worker = 'c'", "worker 'c': its checksum does not agree"),
        ("UPDATE groups SET worker = 'c' WHERE dispatch = 4", "groups 4: its checksum does not agree"),
        ("UPDATE groups SET dispatched_step = 30 WHERE dispatch = 99", "groups 99: its checksum does not agree"),
        ("UPDATE groups SET weights_step = NULL WHERE dispatch = 4", "groups 4: its checksum does not agree"),
        ("UPDATE groups SET content_checksum = NULL WHERE dispatch = 4", "groups 4: its checksum does not agree"),
        ("UPDATE groups SET mean_reward = 0.25 WHERE dispatch = 4", "groups 4: its"),
        ("UPDATE groups SET checksum = checksum + 1 WHERE dispatch = 4", "groups 4: its checksum does not agree"),
        ("UPDATE meta SET value = '22' WHERE key = 'step'", "meta step: its checksum does not agree"),
        ("UPDATE meta SET value = replace(value, '17', '16') WHERE key = 'plan'", "meta plan: its checksum does not"),
        ("UPDATE meta SET value = CAST(x'7bff' AS TEXT) WHERE key = 'plan'", "is damaged (Could not decode to UTF-8"),
    ],
)
def test_a_bit_that_makes_another_valid_value_is_found(
    run: Path, capsys: pytest.CaptureFixture[str], statement: str, finding: str
) -> None:
    change(run, statement)
    assert main(["ledger", "check", str(run)]) == 1
    assert finding in capsys.readouterr().out


@pytest.mark.parametrize("table", [*SEALED, "contents"])
def test_a_flipped_bit_of_any_column_is_found(run: Path, table: str) -> None:
    """Every column of every table, but for a lease's deadline and events."""
    generator = random.Random(table)
    database = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
    columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})") if name != "deadline"]
    key = "rowid" if table == "evaluations" else columns[0]
    for column in columns:
        rows = database.execute(f"SELECT {key}, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
        for row, value in generator.sample(rows, min(len(rows), 3)):
            other = flipped(value, generator)
            try:
                database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (other, row))
            except sqlite3.IntegrityError:
                continue
            assert check_run(run).findings, (column, row)
            now = other if key == column else row
            database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, now))
    database.close()
    assert check_run(run).findings == ()


def flipped(value: Any, generator: random.Random) -> Any:
    """A value of the same type that differs in one bit; one letter of a text becomes another."""
    if isinstance(value, int):
        return value ^ 1 << generator.randrange(20)
    if isinstance(value, float):
        return struct.unpack("<d", (struct.unpack("<Q", struct.pack("<d", value))[0] ^ 1).to_bytes(8, "little"))[0]
    content = bytearray(value.encode() if isinstance(value, str) else value)
    content[generator.randrange(len(content))] ^= 1
    return content.decode() if isinstance(value, str) else bytes(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompts", 0),
        ("prompts", 10**10),
        ("prompts", "17"),
        ("groups_per_step", 0),
        ("groups_per_step", -4),
        ("groups_per_step", 10**30),
        ("steps", 0),
        ("steps", 2.5),
        ("steps", 10**18),
        ("steps", None),
        ("max_staleness", -1),
        ("max_staleness", 10**30),
        ("seed", -1),
        ("seed", "x"),
        ("channels", ["no channel"]),
        ("channels", 3),
        ("recorded_prompts", 5),
        ("recorded_share", 1.5),
        ("recorded_share", "half"),
        ("model", 5),
    ],
)
def test_an_impossible_plan_of_right_checksum_is_a_sentence(
    run: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(run / "ledger.sqlite") as database:
        (text,) = database.execute("SELECT value FROM meta WHERE key = 'plan'").fetchone()
        plan = json.dumps(json.loads(text) | {key: value})
        database.execute(
            "UPDATE meta SET value = ?, checksum = ? WHERE key = 'plan'", (plan, row_checksum("plan", plan))
        )
    database.close()
    for command in (["ledger", "check"], ["ledger", "repair"], ["ledger", "prune", "--keep-steps", "1"]):
        assert main([*command[:2], str(run), *command[2:]]) in (1, 2)
        assert "plan cannot be read" in "".join(capsys.readouterr())


def test_more_dispatched_than_admitted_is_found(run: Path) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        prompt = ledger.prompt_of(104)
    change(run, f"INSERT INTO groups (dispatch, prompt_index, state, worker, deadline, dispatched_step, checksum) "
                f"VALUES (104, {prompt}, 'leased', 'a', 0, 23, 0)", sealed=True)  # fmt: skip
    assert check_run(run).findings == ("groups: 105 dispatched, 104 admitted",)


def test_weights_are_published_before_their_step_is_recorded(run: Path) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        ledger.published(24)
    assert check_run(run).findings == ()


def test_what_a_resume_undid_stays_admitted(run: Path) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        ledger.rewind(5)
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    assert check_run(run).findings == ()


@pytest.mark.parametrize(
    ("file", "content", "finding"),
    [
        ("checkpoints/step-00000020/model.safetensors", safetensors(16)[:-1], "bytes; its header says"),
        ("checkpoints/step-00000020/optimizer.safetensors", safetensors(16)[:30], "is cut off: its 30 bytes"),
        ("checkpoints/step-00000020/optimizer.safetensors", b"", "is cut off: its 0 bytes"),
        ("checkpoints/step-00000020/model.safetensors", b"\x05" + bytes(7) + b"hello", "header that cannot be read"),
        ("checkpoints/step-00000020/state.json", b'{"format_version": 1, "step": 19}', "state.json is of step 19"),
        ("checkpoints/step-00000020/state.json", b"", "state.json cannot be read"),
        ("snapshots/step-00000023/model.safetensors", safetensors(8)[:-4], "bytes; its header says"),
    ],
)
def test_files_that_are_not_whole_are_found(run: Path, file: str, content: bytes, finding: str) -> None:
    (run / file).write_bytes(content)
    (found,) = check_run(run).findings
    assert finding in found
    assert file in found


def test_missing_files_are_found(run: Path) -> None:
    (run / "checkpoints/step-00000020/optimizer.safetensors").unlink()
    (run / "snapshots/step-00000023/config.json").unlink()
    (run / "snapshots/latest").unlink()
    (run / "snapshots/latest").symlink_to("step-00000099")
    found = "\n".join(check_run(run).findings)
    assert "optimizer.safetensors is missing" in found
    assert "has no config.json" in found
    assert "latest names step-00000099, which is not there" in found


def test_a_checkpoint_beyond_the_ledger_is_found(run: Path) -> None:
    make_checkpoint(run / "checkpoints", 24)
    assert "has a checkpoint of step 24, the ledger is at step 23" in check_run(run).findings[0]


@pytest.mark.parametrize("content", [b"", b"no database" * 1000, bytes(8192)])
def test_what_is_no_ledger_is_a_finding(run: Path, content: bytes) -> None:
    (run / "ledger.sqlite").write_bytes(content)
    assert "is not a driftproof ledger" in check_run(run).findings[0]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnavailableError, match=r"is not a run: it has no ledger.sqlite"):
        check_run(tmp_path)
    for action in (["check"], ["repair"], ["prune", "--keep-steps", "1"]):
        assert main(["ledger", action[0], str(tmp_path), *action[1:]]) == 2
        assert "is not a run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_is_checked_and_not_held_up(run: Path) -> None:
    """Every look sees one moment of the run; its writers go on meanwhile."""
    stop = threading.Event()
    findings: list[str] = []
    checks = 0

    def look() -> None:
        nonlocal checks
        while not stop.is_set():
            findings.extend(check_run(run).findings)
            checks += 1

    with Ledger(run / "ledger.sqlite") as ledger:
        ledger.rewind(20)
        thread = threading.Thread(target=look)
        thread.start()
        try:
            go_on(run, ledger, 40)
        finally:
            stop.set()
            thread.join()
    assert findings == []
    assert checks > 1
    assert check_run(run).findings == ()
