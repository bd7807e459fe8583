"""A small HTTP server with vLLM's weight routes and their order, and one log-prob for all tokens; for this process or
as a process of its own: `python stand_in.py PORT [MODE]`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class StandIn(ThreadingHTTPServer):
    """Answers as vLLM 0.32 does; `trouble` are routes and the status and message that they fail with."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.calls: list[str] = []
        self.queries: dict[str, dict[str, str]] = {}
        self.headers: list[str | None] = []
        self.trouble: dict[str, tuple[int, str]] = {}
        self.before: dict[str, Callable[[], object]] = {}
        """Functions that are called before a route is answered."""
        self.closed = threading.Event()
        self.drops: list[str] = []
        """Routes that close the connection without an answer, once for each time they stand here."""
        self.paused = False
        self.active = False
        self.version = ""
        self.weights = ""
        self.logprob = -1.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def answer(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        if route in self.trouble:
            return self.trouble[route][0], {"error": {"message": self.trouble[route][1]}}
        match route:
            case "/pause":
                self.paused = True
            case "/resume":
                self.paused = False
            case "/start_weight_update":
                if self.active:
                    return 500, {"error": {"message": "a weight update is already active"}}
                self.active = True
            case "/update_weights":
                assert self.active
                assert self.paused
                self.weights = body["update_info"]["path"]
            case "/finish_weight_update":
                if not self.active:
                    return 500, {"error": {"message": "without a matching start_weight_update"}}
                self.active = False
                self.version = (body or {}).get("weight_version", "")
            case "/v1/completions":
                return 200, {"choices": [_choice(i, ids, self.logprob) for i, ids in enumerate(body["prompt"])][::-1]}
            case "/health" | "/init_weight_transfer_engine":
                pass
            case _:
                return 404, {"detail": "Not Found"}
        return 200, {}


def _choice(index: int, tokens: list[int], logprob: float) -> dict[str, Any]:
    places = [{str(token): {"logprob": logprob, "rank": 1}} for token in tokens[1:]]
    return {"index": index, "text": "x", "prompt_logprobs": [None, *places]}


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(json.loads(content) if content else {})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: dict[str, Any]) -> None:
        parts = urlsplit(self.path)
        if parts.path in self.server.drops:
            self.server.drops.remove(parts.path)
            return
        self.server.calls.append(parts.path)
        self.server.queries[parts.path] = dict(parse_qsl(parts.query))
        self.server.headers.append(self.headers.get("Authorization"))
        status, value = self.server.answer(parts.path, body or {})
        self.server.before.get(parts.path, bool)()
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(content)


def main(port: int, mode: str = "") -> None:
    """A server of its own, which like vLLM's has a child; `mode`: `broken` ends at once, `mute` never listens."""
    if mode == "broken":
        sys.exit("no weights: the model directory is empty")
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    Path(f"{port}.pids").write_text(f"{os.getpid()} {child.pid}")
    print("started", os.environ.get("OMP_NUM_THREADS"), flush=True)
    if mode == "mute":
        time.sleep(600)
    StandIn(port).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
