"""Ledgers that a disk, or somebody, has changed: found, told in a sentence, or documented (F4, F5, F10, F20)."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftproof.cli.main import main
from driftproof.errors import LedgerError
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.leases import LocalLeases
from driftproof.ledger.maintenance.check import check_ledger, check_run
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import Counters, Plan
from tests.fuzz.inputs import json_values
from tests.inbox.live import make_run as make_real_run
from tests.ledger.made import make_run
from tests.runtime.runs import train, write_recipe

SEALED = {
    "meta": ("key", "value"),
    "steps": ("step", "metrics"),
    "evaluations": ("name", "step", "result"),
    "workers": ("worker", "counters"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run with a recipe, of which a few steps are done."""
    directory = tmp_path_factory.mktemp("sound")
    run = make_real_run(directory, tiny_model_dir)
    made = make_run(directory / "made", steps=3, total=8)
    shutil.copyfile(made / "ledger.sqlite", run / "ledger.sqlite")
    return run


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run", symlinks=True))


def change(run: Path, statement: str, *values: object, sealed: bool = False) -> None:
    with closing(sqlite3.connect(run / "ledger.sqlite")) as database:
        database.create_function("row_checksum", -1, row_checksum)
        assert database.execute(statement, values).rowcount > 0
        for table, columns in SEALED.items() if sealed else ():
            database.execute(f"UPDATE {table} SET checksum = row_checksum({', '.join(columns)})")
        database.commit()


def told(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What all commands that look at a run say of a damaged one: a sentence each, with the command that helps."""
    assert main(["ledger", "check", str(run)]) == 1
    found = capsys.readouterr().out
    codes = [main([command, str(run)]) for command in ("report", "groups")]
    said = capsys.readouterr().err
    assert any(codes), "one of them needs what is damaged"
    assert "Traceback" not in said
    assert all(f"driftproof ledger repair {run}" in line for line in said.splitlines() if line)
    return found


@pytest.mark.slow
def test_f4_a_resume_says_what_helps(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "runtime"))
    run = tmp_path / "run"
    done = train(write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--evaluation.prompts", 0)
    assert done.code == 0, done.stderr
    change(run, F4[0][1])
    for again in (train("--resume", run, "--run.steps", 6), train("--resume", run, "--run.steps", 6)):
        assert again.code == 1
        assert f"driftproof ledger repair {run}" in again.stderr
        assert "Traceback" not in again.stderr + again.stdout
    assert main(["ledger", "repair", str(run)]) == 0
    assert train("--resume", run, "--run.steps", 6).code == 0


F4 = [
    ("a quote of a metric", "UPDATE steps SET metrics = replace(metrics, '\"reward\":', '\"reward:') WHERE step = 2"),
    ("a colon", "UPDATE steps SET metrics = replace(metrics, '\": ', '\"; ') WHERE step = 2"),
    ("no text any more", "UPDATE steps SET metrics = CAST(x'7b22ff' AS TEXT) WHERE step = 1"),
]
F5 = [
    ("a metric", "UPDATE steps SET metrics = replace(metrics, '0.5', '0.7')"),
    ("a step's number", "UPDATE steps SET step = 7 WHERE step = 3"),
    ("a worker's name", "UPDATE workers SET worker = 'b'"),
    ("a worker's counters", "UPDATE workers SET counters = replace(counters, '3', '1')"),
    ("an evaluation", "UPDATE evaluations SET result = replace(result, '0.5', '0.4')"),
    ("who wrote a group", "UPDATE groups SET worker = 'e' WHERE dispatch = 2"),
    ("when it was dispatched", "UPDATE groups SET dispatched_step = 1 WHERE dispatch = 2"),
    ("with which weights", "UPDATE groups SET weights_step = NULL WHERE dispatch = 2"),
    ("what trained it", "UPDATE groups SET trained_step = 2 WHERE dispatch = 2"),
    ("its reward", "UPDATE groups SET mean_reward = 0.75 WHERE dispatch = 2"),
    ("the step", "UPDATE meta SET value = '2' WHERE key = 'step'"),
    ("the plan", "UPDATE meta SET value = replace(value, '17', '16') WHERE key = 'plan'"),
]


@pytest.mark.parametrize("statement", [statement for _, statement in F4], ids=[name for name, _ in F4])
def test_f4_metrics_that_are_no_json(statement: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, statement)
    assert "step" in told(run, capsys)


@pytest.mark.parametrize("statement", [statement for _, statement in F5], ids=[name for name, _ in F5])
def test_f5_another_valid_value_is_found(statement: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, statement)
    told(run, capsys)


def test_f5_no_bit_of_the_file_changes_a_figure_unseen(sound: Path, tmp_path: Path) -> None:
    """Whatever bit of the file is flipped: a reader gets what was written, or check finds it."""
    generator, content = random.Random(5), (sound / "ledger.sqlite").read_bytes()
    written, path, found = everything(sound / "ledger.sqlite"), tmp_path / "ledger.sqlite", 0
    for _ in range(150):
        changed = bytearray(content)
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            now = everything(path)
        except LedgerError:
            now = None
        findings = check_ledger(path).findings
        assert now == written or findings
        found += bool(findings)
    assert found > 10, "most of the file is free space"


def everything(path: Path) -> tuple[Any, ...]:
    """All that figures are made of."""
    with LedgerReader(path) as ledger:
        groups = [(group, ledger.record(group.dispatch)) for group in ledger.browse("oldest", limit=1000)]
        contents = [(group, record and record.group.response_tokens.tobytes()) for group, record in groups]
        counts = {kind: count for kind, (count, _) in ledger.events().items()}
        return ledger.plan, ledger.status(), ledger.steps(), ledger.evaluations(), ledger.workers(), counts, contents


@pytest.mark.parametrize("deadline", ["9e999", "-9e999", "'never'", "x'00'"])
def test_f5_a_deadline_that_never_was_holds_up_nobody_after_a_resume(deadline: str, run: Path) -> None:
    """It has no checksum, as the documentation says: it only decides when another worker gets the group."""
    change(run, f"UPDATE groups SET deadline = {deadline} WHERE state = 'leased'")
    assert check_run(run).findings == ()
    from driftproof.ledger.steps import Steps

    with Steps(run / "ledger.sqlite") as learner:
        learner.rewind(learner.step)
    with LocalLeases(run / "ledger.sqlite") as ledger:
        assert ledger.lease("another", 9, 60.0)


# F10: no space to prune in.


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of its own with so many bytes."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False)


@pytest.mark.parametrize("left", [0, 4096, 40_000, 150_000])
def test_f10_pruning_on_a_full_disk(left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last byte, and with a little that is not enough."""
    made = make_run(tmp_path / "made")
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        run = Path(shutil.copytree(made, disk / "run"))
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        shrink(filler, left)
        assert main(["ledger", "prune", str(run), "--keep-steps", "0"]) in (1, 2)
        said = capsys.readouterr().err
        assert said.startswith("driftproof: ")
        assert "space" in said.lower()
        assert str(run) in said
        filler.unlink()
        assert check_run(run).findings == ()
        assert main(["ledger", "prune", str(run), "--keep-steps", "0"]) == 0


def shrink(file: Path, by: int) -> None:
    with file.open("ab") as opened:
        opened.truncate(max(opened.tell() - by, 0))


# F20: what was written with care, and cannot be.

PLAN = Plan(seed=3, prompts=17, groups_per_step=4, max_staleness=2, steps=4)
IMPOSSIBLE: list[dict[str, Any]] = [
    {"steps": -1},
    {"steps": "4"},
    {"steps": 4.5},
    {"steps": True},
    {"prompts": 0},
    {"prompts": 10**30},
    {"prompts": None},
    {"groups_per_step": [4]},
    {"max_staleness": -1},
    {"max_staleness": float("nan")},
    {"publish_every": -3},
    {"seed": -1},
    {"seed": "x"},
    {"channels": ["nothing"]},
    {"channels": 7},
    {"channels": None},
    {"model": 5},
    {"recorded_prompts": -1, "recorded_share": 0.0},
    {"recorded_prompts": 5, "recorded_share": True},
    {"recorded_prompts": 5, "recorded_share": float("inf")},
    {"recorded_prompts": 5, "recorded_share": "0.5"},
]


def told_of_a_plan(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ledger", "check"], ["report"], ["groups"], ["train", "--resume"], ["inbox"]):
        assert main([*command, str(run)]) in (1, 2)
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    told = [line for line in (said.out + said.err).splitlines() if "the plan cannot be read" in line]
    assert len(told) == 5
    assert max(map(len, told)) < 3000


@pytest.mark.parametrize("values", IMPOSSIBLE, ids=lambda values: str(values)[:40])
def test_f20_a_plan_that_cannot_be(values: dict[str, Any], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(PLAN.to_json()) | values
    change(run, "UPDATE meta SET value = ? WHERE key = 'plan'", json.dumps(plan), sealed=True)
    told_of_a_plan(run, capsys)


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "{}", "[" * 100_000, '{"seed": ' + "9" * 5000 + "}", "\x00"])
def test_f20_a_plan_that_is_none(text: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, "UPDATE meta SET value = ? WHERE key = 'plan'", text, sealed=True)
    told_of_a_plan(run, capsys)


META = ("step", "state", "durable_step", "published_step", "pruned_step", "furthest_step", "format_version", "plan")
texts = st.sampled_from(["", "-1", "9" * 400, "1e3", "٣", "²", "0x1", "nan", "[]", "null", "3.0", " 3", "99999999"])

OBJECTS = (
    "UPDATE steps SET metrics = ? WHERE step = 2",
    "UPDATE workers SET counters = ?",
    "UPDATE evaluations SET result = ?",
    "UPDATE meta SET value = ? WHERE key = 'plan'",
)
objects = json_values | st.dictionaries(
    st.sampled_from(["reward", "groups", "tokens", "engine", "sampled"]), json_values
)


@given(
    row=st.tuples(st.sampled_from([f"UPDATE meta SET value = ? WHERE key = '{key}'" for key in META]), texts)
    | st.tuples(st.sampled_from(OBJECTS), objects.map(json.dumps)),
)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_f20_rows_with_right_checksums_and_impossible_values(
    row: tuple[str, str], sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("changed")
    try:
        shutil.copyfile(sound / "ledger.sqlite", directory / "ledger.sqlite")
        change(directory, *row, sealed=True)
        assert isinstance(check_ledger(directory / "ledger.sqlite").findings, tuple)
        try:
            with LedgerReader(directory / "ledger.sqlite") as ledger:
                look(ledger, directory)
        except LedgerError as error:
            said = str(error)
            assert "driftproof" in said
    finally:
        shutil.rmtree(directory)


def test_f20_numbers_that_are_possible_and_nonsense_are_told_soon(run: Path) -> None:
    """Up to a hundred million steps may be planned; that many are not looked for where they never were."""
    plan = replace(PLAN, steps=99_999_999, groups_per_step=99_999_999)
    change(run, "UPDATE meta SET value = ? WHERE key = 'plan'", plan.to_json(), sealed=True)
    change(run, "UPDATE meta SET value = '90000000' WHERE key IN ('step', 'furthest_step')", sealed=True)
    change(run, "UPDATE groups SET dispatch = 123456789012 WHERE dispatch = 17")
    found = check_run(run).findings
    assert any("steps: 4, 5, 6, 7, 8 and 89,999,992 more not recorded" in finding for finding in found)
    assert len(found) < 20


@pytest.mark.parametrize("table", ["steps", "workers"])
def test_f20_what_readers_refuse_is_found(table: str, run: Path) -> None:
    column = {"steps": "metrics", "workers": "counters"}[table]
    change(run, f'UPDATE {table} SET {column} = \'{{"reward": "high", "tokens": [1]}}\'', sealed=True)
    with LedgerReader(run / "ledger.sqlite") as ledger, pytest.raises(LedgerError, match=r"its \w+ is no number"):
        (ledger.steps if table == "steps" else ledger.workers)()
    assert any("cannot be read" in finding for finding in check_run(run).findings)


def look(ledger: LedgerReader, directory: Path) -> None:
    from driftproof.report.display import View, log_line
    from driftproof.report.summary import summarize

    log_line(View.of(ledger))
    summarize(ledger, directory).to_json()
    ledger.ages_by_step()
    for by in ("newest", "best", "age"):
        ledger.browse(by)  # type: ignore[arg-type]


def test_counters_are_numbers() -> None:
    made = Counters(tokens=3, engine={"calls": 2.0}, phase="decodes")
    assert Counters.from_json(made.to_json()) == made
    for text in ('{"tokens": "3"}', '{"engine": {"calls": null}}', '{"engine": 7}', '{"phase": 1}', "[]"):
        with pytest.raises(ValueError, match=r"its|no object"):
            Counters.from_json(text)
