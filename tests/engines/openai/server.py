"""A small real completion server whose answers come from a table, and which can be told to misbehave.

It speaks as vLLM does (or as llama.cpp's server), over TCP, in threads; the table is a function of weights, prompt and
seed. Faults are taken from a queue, one per completion that is not a probe's.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from driftproof.engines.http import open_client, send
from driftproof.types import Prompt, Request, Sampling

END = 0
VOCABULARY = 256
BASE = "base"
_BROKEN_CHOICES = ("nan", "null", "positive", "infinite", "foreign", "short", "prompt", "abort", "long", "nostop")
FAULTS = ("429", "500", "503", "cut", "garbage", "fewer", "nothing", "close", "gzip", "endless", *_BROKEN_CHOICES)
"""Beside these there are `late`, an answer that comes only once the server is stopped, and `one` spoiled sample."""


class ByteCodec:
    """Bytes are tokens."""

    def encode_response(self, text: str) -> list[int]:
        return [*text.encode(), END]

    def render(self, prompt: Prompt) -> str:
        return prompt.text


def ask(
    key: int, prompt: Sequence[int] = (), *, samples: int = 4, want_logprobs: bool = False, **sampling: Any
) -> Request:
    """A request of tokens [5, 6, key], unless others are given, with the seed 100 * key."""
    return Request(
        key=key,
        prompt=Prompt(index=key, text="1+1=", answer=""),
        prompt_tokens=np.array(prompt or [5, 6, key], dtype=np.int32),
        samples=samples,
        sampling=Sampling(**{"max_tokens": 8, "stop_ids": (END,), "seed": 100 * key} | sampling),
        want_logprobs=want_logprobs,
    )


def answer(weights: str, prompt: Sequence[int], seed: int, max_tokens: int) -> tuple[list[int], list[float], str]:
    """Tokens, log-probs and finish reason of the table."""
    draw = random.Random(f"{weights} {list(prompt)} {seed}")
    length = draw.randint(1, max_tokens)
    stops = length < max_tokens or draw.random() < 0.5
    tokens = [draw.randint(97, 122) for _ in range(length - stops)] + [END] * stops
    return tokens, [-3 * draw.random() for _ in tokens], "stop" if stops else "length"


@dataclass
class TableServer:
    """Answers on a port of its own from `start` to `stop`, while `gate` is open; `restart` forgets the weights."""

    owner: str = "vllm"
    model: str = "tiny"
    token_ids: bool = True
    log_probs: bool = True
    tempered: bool = False
    tells_start: bool = True
    tokenizer_shift: int = 0
    first_byte: int = 0
    """The id of byte 0; the end has the one below, or 0."""
    max_model_len: int | None = 64
    key: str = ""
    public: bool = False
    """Lists its models without the key."""
    reply_seconds: float = 0.0
    retry_seconds: int = 0
    retry_as_date: bool = False
    faults: deque[str] = field(default_factory=deque)
    refuses_updates: bool = False

    weights: str = BASE
    port: int = 0
    started: int = 0
    served_faults: Counter[str] = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the completions that were no probes."""
    times: list[float] = field(default_factory=list)
    weights_used: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    """Samples."""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.stopped = threading.Event()
        self._connections: set[socket.socket] = set()
        self._http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._http = _Http(("127.0.0.1", self.port), _handler(self))
        self.port = self._http.server_address[1]
        self.started += 1
        self.stopped.clear()
        self.weights = BASE
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """As a killed process: the port refuses, open connections are reset."""
        self.stopped.set()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
        with self.lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        self.stop()
        self.start()

    def retry_after(self) -> str:
        date = formatdate(time.time() + self.retry_seconds, usegmt=True)
        return date if self.retry_as_date else str(self.retry_seconds)

    def opened(self, connection: socket.socket) -> None:
        with self.lock:
            self._connections.add(connection)

    def complete(self, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The reply and the fault that goes with it, or ""."""
        probing = body["prompt"] == [1]
        with self.lock:
            fault = self.faults.popleft() if self.faults and not probing else ""
            if fault == "fewer" and body["n"] == 1:
                fault = "nothing"
            if fault:
                self.served_faults[fault] += 1
            if not probing:
                self.requests.append(body)
                self.times.append(time.monotonic())
                self.weights_used.append(self.weights)
        prompt = body["prompt"] if isinstance(body["prompt"], list) else list(body["prompt"].encode())
        samples = body.get("n", 1) - (fault == "fewer")
        choices = [self._choice(body, prompt, index) for index in range(samples)]
        if fault == "one" or fault in _BROKEN_CHOICES:
            for choice in choices[:1] if fault == "one" else choices:
                _spoil("foreign" if fault == "one" else fault, choice)
        if fault == "nothing":
            choices = []
        return {"id": "cmpl-1", "object": "text_completion", "choices": choices, "usage": {}}, fault

    def native(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply of llama.cpp's own route."""
        tokens, _, finish = answer(self.weights, body["prompt"], body["seed"], body["n_predict"])
        if body["prompt"] != [1]:
            with self.lock:
                self.requests.append(body)
        text = bytes(token for token in tokens if token != END).decode()
        tokens = self._ids(tokens)
        ended = {"stop": "eos", "length": "limit"}[finish]
        return {"content": text, "tokens": tokens if body["return_tokens"] else [], "stop_type": ended, "stop": True}

    def _choice(self, body: dict[str, Any], prompt: list[int], index: int) -> dict[str, Any]:
        tokens, logprobs, finish = answer(self.weights, prompt, body["seed"] + index, body["max_tokens"])
        text = bytes(token for token in tokens if token != END).decode()
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": finish, "logprobs": None}
        if self.token_ids and body.get("return_token_ids"):
            choice |= {"token_ids": self._ids(tokens), "prompt_token_ids": prompt}
        if self.log_probs and body.get("logprobs") is not None:
            scale = body["temperature"] if self.tempered else 1
            logprobs = [logprob / scale for logprob in logprobs]
            top = [{chr(token): logprob} for token, logprob in zip(tokens, logprobs, strict=True)]
            choice["logprobs"] = {"tokens": [*map(chr, tokens)], "token_logprobs": logprobs, "top_logprobs": top}
        return choice

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        """The tokens of the table, bytes, as this server numbers them."""
        return [max(0, self.first_byte - 1) if token == END else token + self.first_byte for token in tokens]


def _spoil(fault: str, choice: dict[str, Any]) -> None:
    logprobs = (choice["logprobs"] or {}).get("token_logprobs", [])
    replaced = {"nan": float("nan"), "null": None, "positive": 0.5, "infinite": -9999.0}
    if fault in replaced:
        logprobs[-1:] = [replaced[fault]]
    elif fault == "short":
        logprobs[-1:] = []
    elif fault == "foreign":
        choice["token_ids"] = [VOCABULARY, *choice["token_ids"][1:]]
    elif fault == "prompt":
        choice["prompt_token_ids"] = [7, 7]
    elif fault == "abort":
        choice["finish_reason"] = "abort"
    elif fault == "long":
        choice["token_ids"] = [98] * 1000
    elif fault == "nostop":
        choice |= {"token_ids": [98], "finish_reason": "stop"}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is part of the play."""


def _handler(server: TableServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            server.opened(self.request)
            super().setup()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            llama = server.owner == "llamacpp"
            card: dict[str, Any] = {"id": server.model, "owned_by": server.owner}
            if server.max_model_len and not llama:
                card["max_model_len"] = server.max_model_len
            if not (self._admitted() or (server.public and self.path == "/v1/models")):
                self._send(401, json.dumps({"error": f"no: {self.headers['Authorization']}"}))
            elif self.path == "/v1/models":
                self._send(200, json.dumps({"object": "list", "data": [card]}))
            elif self.path == "/version" and server.owner == "vllm":
                self._send(200, json.dumps({"version": "0.32.0"}))
            elif self.path == "/metrics" and server.tells_start:
                self._send(200, f"# TYPE x gauge\nprocess_start_time_seconds {server.started}.5e+09\n")
            elif self.path == "/props" and llama:
                self._send(
                    200,
                    json.dumps({"default_generation_settings": {"n_ctx": server.max_model_len}, "build_info": "b1"}),
                )
            else:
                self._send(404, "{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._admitted():
                self._send(401, json.dumps({"error": "no"}))
            elif self.path == "/update":
                self._update(body["weights"])
            elif self.path == "/tokenize" and server.owner in ("vllm", "llamacpp"):
                text = body["prompt" if server.owner == "vllm" else "content"]
                tokens = [byte + server.first_byte for byte in text.encode()]
                tokens[-1] += server.tokenizer_shift
                self._send(200, json.dumps({"tokens": tokens, "count": len(tokens)}))
            elif self.path == "/completion" and server.owner == "llamacpp":
                self._send(200, json.dumps(server.native(body)))
            elif self.path == "/v1/completions":
                self._complete(body)
            else:
                self._send(404, "{}")

        def _admitted(self) -> bool:
            return not server.key or self.headers["Authorization"] == f"Bearer {server.key}"

        def _complete(self, body: dict[str, Any]) -> None:
            samples = body.get("n", 1)
            with server.lock:
                server.under_way += samples
                server.most_under_way = max(server.most_under_way, server.under_way)
            try:
                reply, fault = server.complete(body)
                server.gate.wait(300)
                if fault == "late":
                    server.stopped.wait(300)
                time.sleep(server.reply_seconds)
                self._reply(json.dumps(reply), fault)
            finally:
                with server.lock:
                    server.under_way -= samples

        def _reply(self, text: str, fault: str) -> None:
            if fault in ("429", "500", "503"):
                authorization = self.headers.get("Authorization", "")
                headers = {"Retry-After": server.retry_after()} if fault == "429" else {}
                self._send(int(fault), json.dumps({"error": f"busy {authorization}"}), **headers)
            elif fault == "close":
                self.close_connection = True
            elif fault == "cut":
                self._send(200, text, length=2 * len(text))
                self.close_connection = True
            elif fault == "gzip":
                self._send(200, gzip.compress(text.encode()), **{"Content-Encoding": "gzip"})
            elif fault == "endless":
                self._send_for_ever()
            else:
                self._send(200, text[: len(text) // 2] if fault == "garbage" else text)

        def _send_for_ever(self) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

        def _update(self, weights: str) -> None:
            if server.refuses_updates:
                self._send(500, "{}")
                return
            server.weights = weights
            server.updates.append(weights)
            self._send(200, "{}")

        def _send(self, status: int, text: str | bytes, length: int | None = None, **headers: str) -> None:
            content = text if isinstance(text, bytes) else text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler


class HttpUpdater:
    """Tells a server the name of the snapshot."""

    counters: Mapping[str, float] = MappingProxyType({})

    async def update(self, server_url: str, snapshot: Path) -> None:
        async with open_client() as client:
            answer = await send(client, "POST", f"{server_url}/update", {"weights": snapshot.name}, seconds=300)
        if answer.status != 200:
            raise OSError(answer.text)


@contextlib.contextmanager
def serving(*servers: TableServer) -> Iterator[None]:
    """Start servers, and stop them at the end."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()
