"""The process of an inbox from its start to its stop, and the two examples against it, as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import ConfigError
from driftproof.inbox.serve import serve
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED
from driftproof.runtime.build import open_inbox
from tests.inbox.live import ROOT, TOKEN, Client, make_run, process_of

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), tiny_model_dir)


@pytest.fixture(scope="module")
def process(run: Path) -> Iterator[subprocess.Popen[str]]:
    """An inbox that is ready."""
    with process_of(run) as (started, _):
        yield started


def options(**changes: Any) -> dict[str, Any]:
    usual = {"host": "127.0.0.1", "port": 0, "token_environment": "", "max_megabytes": 1, "say": print}
    return usual | changes


def client(run: Path) -> Client:
    url = json.loads((run / "inbox.json").read_text())["url"]
    return Client(int(url.rpartition(":")[2]), (run / "inbox.token").read_text().strip())


def test_only_those_who_may_read_the_token_get_in(run: Path, process: subprocess.Popen[str]) -> None:
    assert stat.S_IMODE((run / "inbox.token").stat().st_mode) == 0o600
    assert json.loads((run / "inbox.json").read_text())["pid"] == process.pid
    assert client(run).call("/status").status == 200
    assert Client(client(run).port, "another").call("/status").status == 401


def test_a_second_inbox_is_refused_and_the_first_goes_on(run: Path, process: subprocess.Popen[str]) -> None:
    with pytest.raises(ConfigError, match="has an inbox already"):
        serve(open_inbox(run), run, **options())
    assert client(run).call("/status").status == 200


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("flock")), reason="the shell example needs both")
def test_the_shell_example(run: Path, process: subprocess.Popen[str]) -> None:
    works_until_the_run_is_finished(run, ["sh", str(EXAMPLES / "rollout_worker.sh"), str(run)], "inbox:curl")


def test_the_python_example(run: Path, process: subprocess.Popen[str]) -> None:
    works_until_the_run_is_finished(
        run, [sys.executable, str(EXAMPLES / "rollout_worker.py"), str(run)], "inbox:example"
    )


def works_until_the_run_is_finished(run: Path, command: list[str], name: str) -> None:
    """The worker writes all that is admitted, waits, and goes home when the run is finished."""
    with Ledger(run / "ledger.sqlite") as ledger:
        if ledger.status().dispatched:
            ledger.set_state("running")
            train(ledger)
        admitted = (ledger.step + 3) * 4
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            wait_for(ledger, admitted, worker)
            ledger.set_state(FINISHED)
            output, _ = worker.communicate(timeout=300)
        finally:
            worker.kill()
        assert worker.returncode == 0, output
        mine = [record for record in ledger.records() if record.worker == name]
        assert len(mine) >= 4
        assert all(record.group.retokenized and record.group.size == 4 for record in mine)


def train(ledger: Ledger) -> None:
    batch = ledger.take(4)
    assert batch is not None
    ledger.finish_step(batch.step, {})
    ledger.published(batch.step)


def wait_for(ledger: Ledger, groups: int, worker: subprocess.Popen[str], limit: float = 300) -> None:
    deadline = time.monotonic() + limit
    while (status := ledger.status()).ready + status.trained < groups:
        assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_does_not_wait_for_the_last_one_to_be_acknowledged(run: Path, process: subprocess.Popen[str]) -> None:
    """With Nagle's algorithm even the fastest would take 40 ms; the fastest of many, as others may be at work here."""
    address = json.loads((run / "inbox.json").read_text())["url"].removeprefix("http://")
    connection = HTTPConnection(address, timeout=300)
    headers = {"Authorization": f"Bearer {(run / 'inbox.token').read_text().strip()}"}
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        connection.request("GET", "/status", headers=headers)
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - started)
    connection.close()
    assert min(seconds[1:]) < 0.03


def test_it_stops_cleanly(run: Path, process: subprocess.Popen[str]) -> None:
    token = (run / "inbox.token").read_text().strip()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert not (run / "inbox.json").exists()
    first, second = output.splitlines()
    assert re.match(rf"inbox of {re.escape(str(run))} at http://127\.0\.0\.1:\d+ ", first)
    assert second == f"token in {run / 'inbox.token'}"
    assert token not in output


def test_tokens_that_are_of_no_use(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = open_inbox(run)
    monkeypatch.delenv("INBOX", raising=False)
    with pytest.raises(ConfigError, match="the environment variable INBOX holds no token of 16"):
        serve(inbox, tmp_path, **options(token_environment="INBOX"))
    for bad in ("short", f"{TOKEN} {TOKEN}", f"{TOKEN}é"):
        monkeypatch.setenv("INBOX", bad)
        with pytest.raises(ConfigError, match="holds no token of 16") as caught:
            serve(inbox, tmp_path, **options(token_environment="INBOX"))
        assert bad not in str(caught.value)
    assert not (tmp_path / "inbox.token").exists()
    (tmp_path / "inbox.token").write_text(TOKEN)
    (tmp_path / "inbox.token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        serve(inbox, tmp_path, **options())
    (tmp_path / "inbox.token").chmod(0o600)
    (tmp_path / "inbox.token").write_text("")
    with pytest.raises(ConfigError, match="remove the file and a new one is made"):
        serve(inbox, tmp_path, **options())


def test_an_address_that_cannot_be_bound(run: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, number in (("127.0.0.1", port), ("192.0.2.1", 0), ("127.0.0.1", 70000)):
            with pytest.raises(ConfigError, match=f"{host} port {number} cannot be listened on"):
                serve(open_inbox(run), tmp_path, **options(host=host, port=number))


def test_an_address_outside_the_loopback_is_warned_of(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INBOX", TOKEN)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("warning"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        serve(open_inbox(run), tmp_path, **options(host="0.0.0.0", token_environment="INBOX", say=say))
    assert "not encrypted" in said[-1]
    assert not (tmp_path / "inbox.json").exists()
