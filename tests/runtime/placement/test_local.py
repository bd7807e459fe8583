"""Processes on this machine: how they end is known, and their stacks can be had also where they hang."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from driftproof.run import RunDirectory
from driftproof.runtime.activity import ActivityFile
from driftproof.runtime.placement.child import STACKS, Ending
from driftproof.runtime.placement.local import LocalMember


def hangs(directory: RunDirectory, _: Connection) -> None:
    """A process that answers like those of a run."""
    log = os.open(directory.log("a"), os.O_WRONLY | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())
    faulthandler.register(STACKS, sys.stderr, all_threads=True)
    ActivityFile(directory.activity("a"))("waits for its engine")
    time.sleep(600)


def explains(_: RunDirectory, parent: Connection) -> None:
    parent.send_bytes(Ending(sentence="the disk is full", refused_input=True).to_bytes())
    sys.exit(1)


def complains(directory: RunDirectory, _: Connection) -> None:
    with directory.log("a").open("a") as log:
        log.write("of today\n")
    sys.exit(3)


def succeeds(_: RunDirectory, __: Connection) -> None: ...


Start = Callable[[Callable[[RunDirectory, Connection], None]], LocalMember]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    directory = RunDirectory(path=tmp_path)
    directory.logs.mkdir()
    log = directory.log("a")
    log.write_text("Thread 0x1 (most recent call first):\n  of long ago\n")
    started = []

    def start(target: Callable[[RunDirectory, Connection], None]) -> LocalMember:
        begins = log.stat().st_size
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(directory, theirs), name="a", daemon=True)
        process.start()
        theirs.close()
        started.append(process)
        return LocalMember(process, log, begins, directory.activity("a"), last_words=ours)

    yield start
    for process in started:
        process.kill()
        process.join()


def until_it_hangs(member: LocalMember) -> None:
    deadline = time.monotonic() + 120
    while member.activity() is None:
        assert time.monotonic() < deadline
        assert member.alive
        time.sleep(0.02)


@pytest.mark.parametrize("paused", [False, True])
def test_stacks_can_be_had_also_of_a_process_that_is_paused(paused: bool, start: Start):
    member = start(hangs)
    until_it_hangs(member)
    pid = int(member.where.removeprefix("pid "))
    if paused:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert member.paused == paused
    stacks = member.stacks()
    assert re.search(r"in hangs\n", stacks)
    assert "long ago" not in stacks
    activity = member.activity()
    assert activity is not None
    assert activity.phase == "waits for its engine"
    assert member.last_error() is None


def test_a_process_that_is_killed_is_gone(start: Start):
    member = start(hangs)
    until_it_hangs(member)
    member.kill()
    assert not member.alive
    assert not member.paused
    assert member.last_error() == "was killed by signal 9"
    assert member.last_output() == ""
    assert member.stacks() == ""


@pytest.mark.parametrize(
    ("target", "error", "output"),
    [
        (explains, "ended: the disk is full", ""),
        (complains, "ended with code 3", "of today"),
        (succeeds, None, ""),
    ],
)
def test_how_a_process_ended(
    target: Callable[[RunDirectory, Connection], None], error: str | None, output: str, start: Start
):
    member = start(target)
    member.wait(120)
    assert [member.last_error(), member.last_error()] == [error, error]
    lines = member.last_output().splitlines()
    assert lines[1:] == ([output] if output else [])
