"""Every durable write has its places, and a planted fault is met once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driftproof import faults

SRC = Path(faults.__file__).parent
WRITER = """
import sys
from driftproof.faults import fault_points
for _ in range(2):
    try:
        with fault_points("snapshot rename"):
            print("written", flush=True)
    except OSError as error:
        print(error, flush=True)
"""


def start(directory: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {faults.VARIABLE: str(directory)},
    )


def test_every_write_is_somewhere_in_the_code():
    code = "".join(path.read_text() for path in SRC.rglob("*.py"))
    for write in faults.WRITES:
        room, _, name = write.partition(" ")
        call = f'transaction(fault="{name}")' if room == "ledger" else f'fault_points("{write}")'
        assert code.count(call) == 1, write
    assert code.count("fault_point(ENGINE, EngineError)") == 1


def test_a_killed_process_comes_no_further(tmp_path: Path):
    faults.plant(tmp_path, "after snapshot rename", "kill")
    process = start(tmp_path)
    output, _ = process.communicate(timeout=300)
    assert (process.returncode, output) == (-9, "written\n")
    assert not list(tmp_path.iterdir())


def test_of_two_processes_one_meets_the_fault_once(tmp_path: Path):
    faults.plant(tmp_path, "before snapshot rename", "fail")
    outputs = [process.communicate(timeout=300)[0] for process in [start(tmp_path), start(tmp_path)]]
    lines = [line for output in outputs for line in output.splitlines()]
    assert sorted(lines) == ["planted fault: before snapshot rename", "written", "written", "written"]


def test_a_slow_disk_takes_its_time(tmp_path: Path):
    faults.plant(tmp_path, "before snapshot rename", "slow")
    started = time.monotonic()
    assert start(tmp_path).communicate(timeout=300)[0] == "written\nwritten\n"
    assert time.monotonic() - started > faults.SLOW_SECONDS


def test_an_unknown_place_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown place 'before lunch'; valid: before ledger lease"):
        faults.plant(tmp_path, "before lunch", "kill")
