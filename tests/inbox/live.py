"""Runs without a learner, and real servers of their inboxes.

`python -m tests.inbox.live RUN [MEGABYTES]` serves one until it is told to stop.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from driftproof.config import load_config
from driftproof.inbox.app import make_app
from driftproof.inbox.serve import serve
from driftproof.inbox.server import Server
from driftproof.inbox.service import Inbox
from driftproof.runtime.build import open_inbox
from driftproof.runtime.preflight import preflight, prepare_directory
from tests.runtime.runs import write_recipe

ROOT = Path(__file__).parent.parent.parent
TOKEN = "a-token-for-tests"
EOS = 1
"""Stop token of the tiny model."""


def make_run(directory: Path, model: Path, *overrides: object) -> Path:
    """A run of 8 prompts, 4 responses each of at most 4 tokens; 12 groups are admitted at first."""
    recipe = write_recipe(directory, model)
    settings = ["--run.directory", directory / "run", "--task.verifier", "exact", *overrides]
    config = load_config(recipe, list(map(str, settings)))
    return prepare_directory(config, preflight(config)).path


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    body: Any

    @property
    def outcomes(self) -> list[str]:
        return [group["outcome"] for group in self.body["groups"]]

    @property
    def problems(self) -> list[str]:
        return [problem for group in self.body["groups"] for problem in group["problems"]]


@dataclass(frozen=True)
class Client:
    """Calls a server with a token."""

    port: int
    token: str = TOKEN

    def call(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """GET, or POST of `body`, which is sent as it is where it is bytes."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, sent)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                content = answer.read()
                is_json = answer.headers["Content-Type"] == "application/json"
                return Answer(answer.status, json.loads(content) if is_json else content)
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.loads(error.read()))

    def prompts(self, n: int = 1, worker: str = "w") -> list[dict[str, Any]]:
        answer = self.call(f"/prompts?n={n}&worker={worker}")
        assert answer.status == 200, answer
        prompts: list[dict[str, Any]] = answer.body["prompts"]
        return prompts

    def post(self, *groups: Any) -> Answer:
        return self.call("/groups", {"groups": groups})


def written(prompt: dict[str, Any], worker: str = "w", **changes: Any) -> dict[str, Any]:
    """A group in order: four equal responses of two tokens; `changes` are made to every response."""
    response = {"tokens": [5, EOS], "finish_reason": "stop", "reward": 1.0} | changes
    response = {name: value for name, value in response.items() if value is not None}
    return {"dispatch": prompt["dispatch"], "worker": worker, "responses": [response] * prompt["samples"]}


@contextmanager
def app_of(run: Path, max_bytes: int = 1 << 20, url: str = "") -> Iterator[tuple[Inbox, FastAPI]]:
    inbox = open_inbox(run)
    try:
        yield inbox, make_app(inbox, TOKEN, max_bytes, url)
    finally:
        inbox.close()


@contextmanager
def serving(run: Path, max_bytes: int = 1 << 20, url: str = "") -> Iterator[Client]:
    """A server of the run's inbox in a thread."""
    with app_of(run, max_bytes, url) as (_, app), socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.001)
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def process_of(
    run: Path, megabytes: int = 1, before: Callable[[], None] = lambda: None
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A server in a process of its own, in which `before` is called first, and a client with the run's own token."""
    command = [sys.executable, "-m", "tests.inbox.live", str(run), str(megabytes)]
    started = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=before
    )
    try:
        while not (run / "inbox.json").exists():
            assert started.poll() is None, started.communicate()
            time.sleep(0.01)
        url = json.loads((run / "inbox.json").read_text())["url"]
        yield started, Client(int(url.rpartition(":")[2]), (run / "inbox.token").read_text().strip())
    finally:
        started.kill()
        started.communicate()


if __name__ == "__main__":
    run, megabytes = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    serve(
        open_inbox(run),
        run,
        host="127.0.0.1",
        port=0,
        token_environment="",
        max_megabytes=megabytes,
        say=lambda line: print(line, flush=True),
    )
