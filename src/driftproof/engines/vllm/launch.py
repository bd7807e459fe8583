"""A vLLM server of our own: started, watched, started again and stopped.

Guarantees: it listens on loopback alone; its output is in a log file; when this process ends, however it ends, no
process of the server is left; a server that does not come up is an error with its last words.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx2

from driftproof.engines.vllm import BACKEND, guard
from driftproof.errors import EngineError

_TICK_SECONDS = 0.2
_LAST_LINES = 12


class Server:
    """A process that answers `GET /health` on a port of 127.0.0.1."""

    def __init__(self, command: Sequence[str], *, port: int, log: Path, environment: Mapping[str, str]) -> None:
        """Start `command`; `environment` comes on top of ours, and the log is appended to."""
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._command = [sys.executable, "-I", guard.__file__, *command]
        self._environment = {**os.environ, **environment}
        self._process = self._start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, seconds: float, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it answers; False when `interrupted` said so before, EngineError after so many seconds, or when it
        ended."""
        deadline = time.monotonic() + seconds
        while not self.answers():
            if not self.alive:
                raise EngineError(f"the server ended with code {self._process.returncode}; {self.last_words()}")
            if time.monotonic() > deadline:
                silent = f"the server does not answer at {self.url}/health within {seconds:g} s (runtime.start_seconds)"
                raise EngineError(f"{silent}; {self.last_words()}")
            if interrupted():
                return False
            time.sleep(_TICK_SECONDS)
        return True

    def answers(self) -> bool:
        """Whether it is up and well."""
        try:
            # Whatever it says beside its status is not read.
            with httpx2.stream("GET", f"{self.url}/health", timeout=5.0, trust_env=False) as answer:
                return answer.status_code == 200
        except httpx2.HTTPError:
            return False

    def restart(self) -> None:
        """Start it again, at the same address and with the weights it began with."""
        self.stop()
        self._process = self._start()

    def stop(self) -> None:
        """End it and all that it started; again is harmless."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(guard.GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The end of its log, and where the rest is."""
        return "\n".join([f"the end of {self.log}:", *self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )


def launch(
    python: Path, model: Path, *, log: Path, device: str, threads: int, slots: int, arguments: Sequence[str] = ()
) -> Server:
    """Start vLLM with the interpreter of its environment; it is ready when `wait_ready` says so.

    On device `cpu` it computes in float32, without compilation, with so many threads; on `cuda` by its own defaults.
    `arguments` are more of vLLM's own, which win over ours.
    """
    port = free_port()
    command = [str(python), *vllm_arguments(model, port=port, device=device, slots=slots), *arguments]
    return Server(command, port=port, log=log, environment=vllm_environment(device, threads))


def vllm_arguments(model: Path, *, port: int, device: str, slots: int) -> list[str]:
    """Command line of vLLM, without the interpreter."""
    # On CPU, vLLM 0.32 dies of a request with a seed that it prefills in chunks (torch's CPU generator cannot be set
    # back), as it may any request that an update makes it prefill again.
    on_cpu = ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"] if device == "cpu" else []
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model.resolve())),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-num-seqs", str(slots)),
        *("--weight-transfer-config", f'{{"backend": "{BACKEND}"}}'),
        # Log-probs of the distribution that is sampled from, after temperature.
        *("--logprobs-mode", "processed_logprobs"),
        # No sampling defaults but ours.
        *("--generation-config", "vllm"),
        *on_cpu,
    ]


def vllm_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables for vLLM."""
    # The routes for weights and pausing are there in this mode alone; no statistics leave the machine.
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_PLUGINS": BACKEND, "VLLM_NO_USAGE_STATS": "1"}
    if device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")
        # Bound to cores, it would share one with the learner while others idle.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def check_environment(python: Path) -> str:
    """The version of vLLM that an interpreter has, without starting it; EngineError where it lacks something."""
    hint = "make the environment with `make vllm`, or give another with --engine.python"
    if not python.is_file():
        raise EngineError(f"engine.python {python} does not exist; {hint}")
    question = (
        "from importlib.metadata import distribution, entry_points, packages_distributions as found\n"
        f"print(any(point.name == {BACKEND!r} for point in entry_points(group='vllm.general_plugins')))\n"
        "print(*(distribution(name).version for name in found().get('vllm', [])[:1]))"
    )
    answer = subprocess.run([python, "-c", question], capture_output=True, text=True, timeout=120)
    plugin, _, version = answer.stdout.strip().partition("\n")
    if not version:
        raise EngineError(f"engine.python {python} has no vLLM; {hint}")
    if plugin != "True":
        raise EngineError(f"the environment of {python} lacks driftproof (pip install --no-deps driftproof); {hint}")
    return version


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
