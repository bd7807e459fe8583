"""A Hugging Face hub with one model, small enough for tests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME, COMMIT = "me/tiny", "c" * 40


@dataclass
class Hub:
    """Address of a hub that serves a directory as `NAME`, and what it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve(directory: Path) -> Iterator[Hub]:
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    hub = Hub("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            name, _, file = self.path[1:].partition(f"/resolve/{COMMIT}/")
            api = self.path.removeprefix(f"/api/models/{NAME}").split("?")[0]
            if api in ("", "/revision/main", "/revision/v1", f"/revision/{COMMIT}"):
                self._answer({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            elif api == f"/tree/{COMMIT}":
                listed = [{"type": "file", "path": name, "size": len(content)} for name, content in files.items()]
                self._answer([entry | {"oid": _oid(files[str(entry["path"])])} for entry in listed])
            elif name == NAME and file in files:
                self._send(200, files[file], {"ETag": f'"{_oid(files[file])}"', "X-Repo-Commit": COMMIT})
            elif self.path.startswith("/api/models/me/gated"):
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            else:
                known = self.path.startswith(f"/api/models/{NAME}/")
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

        do_HEAD = do_GET

        def _answer(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
        server.shutdown()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
