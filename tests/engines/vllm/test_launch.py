from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftproof.engines.vllm.launch import Server, check_environment, free_port, vllm_arguments, vllm_environment
from driftproof.errors import EngineError
from tests.engines.vllm import stand_in

LIMIT = 300.0
"""Seconds; a busy machine takes its time to start Python."""


def start(directory: Path, *mode: str) -> Server:
    port = free_port()
    command = ["sh", "-c", 'cd "$0" && exec "$@"', str(directory), sys.executable, "-S", stand_in.__file__, str(port)]
    return Server([*command, *mode], port=port, log=directory / "vllm.log", environment={"OMP_NUM_THREADS": "3"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with start(tmp_path) as running:
        assert running.wait_ready(LIMIT)
        yield running


def pids(directory: Path) -> list[int]:
    """Pids of the server in `directory` and of its child."""
    return [int(pid) for file in directory.glob("*.pids") for pid in file.read_text().split()]


def running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_end(found: list[int]) -> bool:
    deadline = time.monotonic() + LIMIT
    while any(map(running, found)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(running, found))


def test_it_starts_answers_and_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    assert server.answers()
    assert "started 3" in server.log.read_text()
    found = pids(tmp_path)
    assert len(found) == 2
    assert all(map(running, found))
    # Ctrl-C in our terminal is not for it.
    assert os.getpgid(found[0]) != os.getpgid(0)
    server.stop()
    assert not server.alive
    assert not server.answers()
    assert all_end(found)
    server.stop()


def test_a_server_that_was_killed_comes_back_at_its_address(server: Server, tmp_path: Path) -> None:
    first = pids(tmp_path)
    os.kill(first[0], signal.SIGKILL)
    assert all_end(first), "its child must not outlive it"
    deadline = time.monotonic() + LIMIT
    while server.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.alive
    server.restart()
    assert server.wait_ready(LIMIT)
    assert not set(first) & set(pids(tmp_path))


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from tests.engines.vllm.test_launch import LIMIT, start\n"
            "server = start(Path(sys.argv[1])); server.wait_ready(LIMIT); print('ready', flush=True); time.sleep(600)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    found = pids(tmp_path)
    assert all(map(running, found))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all_end(found)


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with start(tmp_path, "broken") as server, pytest.raises(EngineError, match="ended with code 1") as failure:
        server.wait_ready(LIMIT)
    assert "no weights: the model directory is empty" in str(failure.value)
    assert str(tmp_path / "vllm.log") in str(failure.value)


def test_a_server_that_never_answers_is_stopped(tmp_path: Path) -> None:
    with start(tmp_path, "mute") as server:
        with pytest.raises(EngineError, match=r"within 0\.3 s \(runtime\.start_seconds\)"):
            server.wait_ready(0.3)
        assert not server.wait_ready(LIMIT, interrupted=lambda: bool(pids(tmp_path)))
    assert all_end(pids(tmp_path))


def test_the_command_line_keeps_to_loopback_and_to_our_sampling() -> None:
    arguments = vllm_arguments(Path("/models/tiny"), port=8123, device="cpu", slots=32)
    options = dict(zip(arguments[2::2], arguments[3::2], strict=False))
    assert options["--model"] == "/models/tiny"
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "8123"
    assert options["--max-num-seqs"] == "32"
    assert options["--generation-config"] == "vllm"
    assert options["--dtype"] == "float32"
    assert json.loads(options["--weight-transfer-config"]) == {"backend": "driftproof"}
    on_gpu = vllm_arguments(Path("/models/tiny"), port=8123, device="cuda", slots=32)
    assert "--dtype" not in on_gpu
    assert "--enforce-eager" not in on_gpu


def test_the_environment_opens_the_routes_and_says_nothing_to_others() -> None:
    for device in ("cpu", "cuda"):
        environment = vllm_environment(device, 2)
        assert environment["VLLM_SERVER_DEV_MODE"] == "1"
        assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert vllm_environment("cpu", 2)["OMP_NUM_THREADS"] == "2"


def test_an_interpreter_that_cannot_serve_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"does not exist; make the environment.*--engine\.python"):
        check_environment(tmp_path / "python")
    with pytest.raises(EngineError, match="has no vLLM"):
        check_environment(Path(sys.executable))
