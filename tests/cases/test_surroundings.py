"""What was done to a run from outside: to its inbox (F1, F2, F8, F18, F23, F28), by servers (F3), by texts (F7).

Every bound that is met here stands in docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import logging
import os
import re
import resource
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from driftproof.cli.main import main
from driftproof.engines.http import ReplyError, Unreachable, open_client, send
from driftproof.engines.openai import requests as engine_requests
from driftproof.errors import ConfigError
from driftproof.inbox import app, messages, server, workers
from driftproof.inbox.reading import BodyError, GroupSize, read_groups
from driftproof.inbox.serve import serve
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters
from driftproof.runtime.build import open_inbox
from driftproof.text import printable
from driftproof.weights.snapshots import Publisher
from tests.engines.openai.server import TableServer
from tests.engines.openai.server import serving as answering
from tests.inbox.live import ROOT, TOKEN, Client, make_run, process_of, serving, written
from tests.runtime.runs import wait_until

EXAMPLES = ROOT / "examples"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202egnol\x9b1m"
"""Sets a title, clears the screen, colors it, turns letters around; the last is ESC [ in one character."""


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return make_run(tmp_path, tiny_model_dir)


# F1: bodies that are small on the way and large in memory.

LARGE = GroupSize(samples=8, max_tokens=4096)


def group(**response: Any) -> dict[str, Any]:
    return {"dispatch": 0, "worker": "w", "responses": [{"tokens": [5], "finish_reason": "stop", **response}]}


def body(*groups: Any) -> bytes:
    return json.dumps({"groups": groups}).encode()


def repeated(piece: bytes, count: int) -> bytes:
    return b",".join([piece] * count)


def many_fields(count: int) -> bytes:
    return b"{" + b",".join(b'"x%d":0' % n for n in range(count)) + b"}"


BODIES = {
    "a million wrong token ids": lambda: body(group(tokens=[-1] * 1_000_000)),
    "a million right token ids": lambda: body(group(tokens=[5] * 1_000_000)),
    "log-probs of the wrong kind": lambda: body(group(logprobs=["x"] * 300_000)),
    "300,000 unknown fields": lambda: b'{"groups":[' + many_fields(300_000) + b"]}",
    "unknown fields of a response": lambda: b'{"groups":[{"dispatch":0,"responses":[' + many_fields(200_000) + b"]}]}",
    "one field again and again": lambda: b'{"groups":[{' + repeated(b'"dispatch":0', 300_000) + b"}]}",
    "groups without end": lambda: b'{"groups":[' + repeated(b"{}", 1_000_000) + b"]}",
    "responses without end": lambda: b'{"groups":[{"dispatch":0,"responses":[' + repeated(b"{}", 1_000_000) + b"]}]}",
    "lists in a list": lambda: b'{"groups":[' + repeated(b"[" + repeated(b"[]", 10_000) + b"]", 100) + b"]}",
    "lists in lists in lists": lambda: b'{"groups":[' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"]}",
    "a key of megabytes": lambda: b'{"groups":[{"' + b"k" * 3_000_000 + b'":0}]}',
    "a text of megabytes": lambda: body(group(tokens=None, text="7" * 3_000_000)),
    "a number of megabytes": lambda: b'{"groups":[' + b"9" * 3_000_000 + b"]}",
    "nothing but blanks": lambda: b" " * 3_000_000,
    "a list where an object belongs": lambda: b"[" + repeated(b"[]", 1_000_000) + b"]",
    "never closed": lambda: b'{"groups":[{"dispatch":0,"responses":[{"text":"' + b"a" * 3_000_000,
}


@pytest.mark.parametrize("what", BODIES)
def test_f1_reading_stops_at_the_first_faults(what: str) -> None:
    content, before = BODIES[what](), memory()
    try:
        found = read_groups(content, LARGE)
    except BodyError as error:
        said, status = str(error), error.status
        assert len(said) < 500
        assert status in (413, 422)
    else:
        refusals = [each for each in found if isinstance(each, messages.Refusal)]
        # A text is never tokenized: the service counts its letters.
        assert refusals or what == "a text of megabytes"
        assert all(len(refusal.problems) <= messages.SHOWN_PROBLEMS for refusal in refusals)
    assert memory() - before < 300 << 20


def memory() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


Flooded = tuple[subprocess.Popen[str], Client]


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Flooded]:
    """The inbox of a run of long responses, whose bodies may be large, where few files may be open."""

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    run = make_run(tmp_path_factory.mktemp("flooded"), tiny_model_dir, "--sampling.max_tokens", 4096)
    with process_of(run, megabytes=64, before=few_files) as started:
        yield started


def test_f1_others_are_served_meanwhile(flooded: Flooded) -> None:
    process, client = flooded
    bodies = [BODIES[name]() for name in ("a million wrong token ids", "300,000 unknown fields", "groups without end")]
    bodies += [b'{"groups":[' + repeated(b"-1", 20_000_000) + b"]}", body(*[group(tokens=[-1] * 400_000)] * 40)]
    client.prompts(1)
    begun, served = peak(process.pid), 0
    with ThreadPoolExecutor(1) as pool:
        for content in bodies:
            posted = pool.submit(client.call, "/groups", content)
            while not posted.done():
                assert client.call("/status").status == 200
                served += 1
            assert posted.result().status in (413, 422)
            assert len(str(posted.result().body)) < 60_000
    assert served > len(bodies)
    assert peak(process.pid) - begun < 600 << 20
    assert client.post(written(client.prompts(1)[0])).outcomes == ["accepted"]


def test_f1_a_body_is_no_larger_than_its_groups_can_be(run: Path) -> None:
    with serving(run, max_bytes=1 << 30) as client:
        answer = client.call("/groups", body(group(tokens=[-1] * 1_000_000)))
        assert answer.status == 413
        assert re.search("has more than [0-9,]+ bytes", answer.body["error"])


def test_f1_all_bodies_together_have_a_bound(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path, tiny_model_dir, "--sampling.max_tokens", 256)
    most = 100_000
    head = f"POST /groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {most}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    senders: list[socket.socket] = []
    with serving(run, max_bytes=most) as client, ExitStack() as stack:
        for _ in range(app.BODIES + 1):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", client.port)))
            slow.sendall(head.encode() + b" " * (most - 1))
            senders.append(slow)
        (answered, *_), _, _ = select.select(senders, [], [], 300)
        answer = b""
        while b"too many large bodies" not in answer:
            answer += (piece := answered.recv(10_000))
            assert piece, answer
        stack.close()
        while client.post(written({"dispatch": 0, "samples": 4})).status == 503:
            time.sleep(0.01)


# F2: connections that send nothing.


@contextmanager
def half_headers(port: int, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=300)))
            found[-1].sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nX-Half: ")
        yield found


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes it, which is waited for."""
    try:
        while connection.recv(10_000):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LIMITS", {"header": 2.0, "body": 2.0, "take": 2.0})


def test_f2_slow_senders_and_readers_are_disconnected(
    run: Path, short_times: None, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Publisher(run / "snapshots", tiny_model_dir).publish(0, {"w": torch.zeros(8 << 20)})
    token = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with serving(run) as client, half_headers(client.port, 3) as connections:
        for start in (
            b"",
            b"G",
            f"POST /groups HTTP/1.1\r\n{token}Content-Length: 1000\r\n\r\n{{".encode(),
            f"POST /groups HTTP/1.1\r\n{token}Transfer-Encoding: chunked\r\n\r\n5\r\n{{".encode(),
            f"GET /status HTTP/1.1\r\n{token}\r\nGET /status HT".encode(),
            b"POST /groups HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx",
        ):
            connections.append(socket.create_connection(("127.0.0.1", client.port), timeout=300))
            connections[-1].sendall(start)
        reader = socket.create_connection(("127.0.0.1", client.port), timeout=300)
        reader.sendall(f"GET /weights/0/model.safetensors HTTP/1.1\r\n{token}\r\n".encode())
        assert all(map(ended, connections))
        wait_until(lambda: "nothing of an answer was taken within 2 s" in capsys.readouterr().err)
        assert client.call("/status").status == 200
        with closing(reader):
            assert ended(reader)


def test_f2_who_asks_gets_in_however_many_do_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 8)
    with serving(run) as client, half_headers(client.port, 60) as connections:
        assert client.call("/status").status == 200
        assert all(map(ended, connections[:50])), "the oldest made room"


def test_f2_a_flood_where_few_files_may_be_open(flooded: Flooded) -> None:
    process, client = flooded
    with half_headers(client.port, 200):
        for _ in range(20):
            assert client.call("/status").status == 200
        assert client.post(written(client.prompts(1)[0])).outcomes == ["accepted"]
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 100
    process.terminate()
    output, _ = process.communicate(timeout=300)
    assert "Traceback" not in output
    assert len(output.splitlines()) < 20, output


def test_f2_too_few_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 40))
    with pytest.raises(ConfigError, match=r"only 40 files may be open; .* ulimit -n 1024"):
        server.most_connections()


def test_f2_the_log_is_calm() -> None:
    calm, passed = server.Calm(), []
    for n in range(1000):
        record = logging.LogRecord("x", logging.WARNING, "", 0, "closed %s", (n,), None)
        passed += [record.getMessage()] if calm.filter(record) else []
    assert passed == ["closed 0"]


# F3: replies that never end, or unpack to more than there is memory.

ENCODINGS = ("gzip", "deflate", "br", "zstd", "gzip, gzip")


@cache
def bomb(encoding: str) -> bytes:
    """A reply of some kilobytes that says to unpack to 200 megabytes, and with gzip does."""
    content = gzip.compress(bytes(200 << 20))
    return b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encoding.encode(), len(content)) + content


def endless() -> dict[str, list[bytes]]:
    """What a server sends: its pieces, the last again and again."""
    ok = b"HTTP/1.1 200 OK\r\n"
    chunked = ok + b"Transfer-Encoding: chunked\r\n"
    return {
        "without a length": [ok + b"\r\n", bytes(1 << 16)],
        "in chunks": [chunked + b"\r\n", b"10000\r\n" + bytes(1 << 16) + b"\r\n"],
        "a length of gigabytes": [ok + b"Content-Length: 9000000000\r\n\r\n", bytes(1 << 16)],
        "a header without end": [ok + b"X: ", b"x" * (1 << 16)],
        "headers without end": [ok, b"X: x\r\n"],
        "interim answers without end": [b"HTTP/1.1 103 Early Hints\r\n\r\n"],
        "one byte at a time": [ok + b"Content-Length: 1000\r\n\r\n", b"x"],
    }


@pytest.mark.parametrize("reply", [*ENCODINGS, *endless()])
def test_f3_every_reply_has_a_bound(reply: str) -> None:
    pieces = [b"HTTP/1.1 200 OK\r\n", bomb(reply)] if reply in ENCODINGS else endless()[reply]

    async def ask() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            try:
                for piece in pieces[:-1]:
                    writer.write(piece)
                while True:
                    writer.write(pieces[-1])
                    await writer.drain()
                    await asyncio.sleep(0.2 if len(pieces[-1]) == 1 else 0)
            except OSError:
                pass
            finally:
                writer.close()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with open_client() as client:
            await send(client, "GET", url, seconds=2, limit=1 << 20)

    before = memory()
    with pytest.raises((ReplyError, Unreachable)) as refused:
        asyncio.run(ask())
    assert len(str(refused.value)) < 500
    assert memory() - before < 100 << 20


def test_f3_the_bound_of_responses_is_made_of_what_was_asked_for() -> None:
    from tests.engines.openai.server import ask

    small, large = (engine_requests.reply_bytes(ask(1, samples=samples), samples, 8) for samples in (1, 64))
    assert small < large < small + 64 * 64 * 1024


# F7: texts that are no words.


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_f7_a_server_is_shown_harmless(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    table = TableServer(model=f"tiny{ESCAPES}", token_ids=False)
    with answering(table):
        command = ["check", str(recipe), "--task.verifier", "exact", "--engine.name", "openai"]
        command += ["--engine.url", table.url]
        main(command)
        main([*command, "--engine.model", ESCAPES])
    said = capsys.readouterr()
    assert "owned" in said.out
    assert harmless(said.out)
    assert harmless(said.err)


def test_f7_a_ledger_is_shown_harmless(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        ledger.record_event(f"kind{ESCAPES}", f"message{ESCAPES}")
        ledger.report_worker(f"worker{ESCAPES}", Counters())
        assert ledger.lease(f"worker{ESCAPES}", 1, 100.0)
        assert harmless(str(ledger.events()))
    main(["report", str(run)])
    main(["groups", str(run)])
    with closing(sqlite(run)) as database:
        database.execute("UPDATE workers SET counters = '?'")
        database.execute("UPDATE event_kinds SET kind = ?, message = ?", (f"x{ESCAPES}", ESCAPES))
        database.commit()
    main(["report", str(run)])
    main(["ledger", "check", str(run)])
    with closing(sqlite(run)) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
        database.execute("UPDATE meta SET value = ? WHERE key = 'driftproof'", (ESCAPES,))
        database.commit()
    for command in (["ledger", "check"], ["groups"], ["report"], ["train", "--resume"]):
        main([*command, str(run)])
    said = capsys.readouterr()
    assert "owned" in said.out
    assert "owned" in said.err
    assert harmless(said.out)
    assert harmless(said.err)


def test_f7_a_chat_template_is_shown_harmless(
    tmp_path: Path, run: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + ESCAPES + "') }}")
    command = ["train", str(tmp_path / "recipe.toml"), "--task.verifier", "exact", "--model.path", str(model)]
    assert main([*command, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "owned" in said.err
    assert harmless(said.err)


def sqlite(run: Path) -> Any:
    import sqlite3

    return sqlite3.connect(run / "ledger.sqlite")


def test_f7_what_is_sent_to_the_inbox_is_recorded_harmless(run: Path) -> None:
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger:
        (prompt,) = client.prompts(1)
        assert client.post(written(prompt) | {ESCAPES: 1}).outcomes == ["refused"]
        assert client.call(f"/prompts?worker={ESCAPES.encode().hex()[:70]}%1b").status == 422
        assert "owned" in str(ledger.events())
        assert all(harmless(message) for _, message in ledger.events().values())


# F8: links in a snapshot.


def test_f8_only_files_of_the_snapshot_are_sent(run: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"secret": true}')
    path = Publisher(run / "snapshots", tiny_model_dir).publish(3, {"w": torch.zeros(1)}).path
    (path / "link.json").symlink_to(secret)
    (path / "beside.json").symlink_to(path / "config.json")
    os.mkfifo(path / "pipe.json")
    (path / "directory.json").mkdir()
    (run / "snapshots" / "step-00000004").symlink_to(tmp_path)
    with serving(run) as client:
        names = {file["name"] for file in client.call("/weights/latest").body["files"]}
        assert "config.json" in names
        assert not names & {"link.json", "beside.json", "pipe.json", "directory.json"}
        for name in ("3/link.json", "3/beside.json", "3/pipe.json", "3/directory.json", "4/secret.json"):
            assert client.call(f"/weights/{name}").status == 404, name


# F18: sizes that leave nothing.


@pytest.mark.parametrize("size", ["0", "-1", "nan", "1e9", "100000"])
def test_f18_a_size_that_takes_no_group_is_refused(size: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["inbox", str(run), "--max-megabytes", size])
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2
    said = capsys.readouterr().err
    assert "--max-megabytes" in said
    assert size in said
    assert not (run / "inbox.json").exists()


@pytest.mark.parametrize("size", [0, -1, 1025])
def test_f18_so_it_is_by_whomever_an_inbox_is_served(size: int, run: Path) -> None:
    with pytest.raises(ConfigError, match=f"--max-megabytes is {size}; 1 to 1,024 are possible"):
        serve(open_inbox(run), run, host="127.0.0.1", port=0, token_environment="", max_megabytes=size, say=print)


# F23: more and more names, more and more refusals.


def test_f23_made_up_names_cost_nothing(run: Path) -> None:
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger, ThreadPoolExecutor(4) as pool:
        first = client.prompts(1, "first")
        list(pool.map(lambda n: client.prompts(1, f"w{n}"), range(workers.MAX_WORKERS + 50)))
        assert len(ledger.workers()) == workers.MAX_WORKERS + 1
        assert client.post(written(first[0], "first")).outcomes == ["accepted"]
        for n in range(50):
            assert client.post(written(first[0], f"nobody-{n}")).outcomes == ["duplicate"]
            assert client.post(written(first[0]) | {"dispatch": 10**6}).outcomes == ["refused"]
        assert len(ledger.workers()) == workers.MAX_WORKERS + 1
        counts = {kind: count for kind, (count, _) in ledger.events().items()}
        assert counts["inbox refused groups"] < 20
        assert counts["late commit"] < 20


def test_f23_who_comes_late_works_all_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_WORKERS", 2)
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger:
        leased = {name: client.prompts(1, name)[0] for name in ("a", "b", "c", "d")}
        for name, prompt in leased.items():
            assert client.post(written(prompt, name)).outcomes == ["accepted"]
        assert set(ledger.workers()) == {"inbox:a", "inbox:b", workers.OTHERS}
        assert ledger.workers()[workers.OTHERS].groups == 2
    with serving(run) as client:  # another inbox knows them, too
        assert client.prompts(1, "e")
        assert set(Ledger(run / "ledger.sqlite").workers()) == {"inbox:a", "inbox:b", workers.OTHERS}


def test_f23_what_is_not_recorded_is_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(workers.time, "monotonic", lambda: now)
    events = workers.SenderEvents()
    with Ledger(run / "ledger.sqlite") as ledger:
        for _ in range(5):
            events.record(ledger, "refused", "first")
        now += workers.EVENT_SECONDS
        events.record(ledger, "refused", "later")
        assert ledger.events()["refused"] == (2, "later; 4 more since the event before")


# F28: somebody else at the address of an inbox that is no more.


class Impostor(http.server.BaseHTTPRequestHandler):
    """Answers whatever is asked as an inbox would that knows no token, and notes what it is told."""

    heard: list[str]

    def do_GET(self) -> None:
        self.heard.append(f"{self.path}\n{self.headers}")
        content = b'{"url": "", "proof": "", "state": "finished", "prompts": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("example", ["rollout_worker.py", "rollout_worker.sh"])
def test_f28_the_token_is_shown_to_the_inbox_alone(example: str, tmp_path: Path) -> None:
    if example.endswith(".sh") and not (shutil.which("curl") and shutil.which("flock")):
        pytest.skip("the shell example needs curl and flock")
    heard: list[str] = []
    handler = type("Heard", (Impostor,), {"heard": heard})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as impostor:
        # All that an inbox leaves behind that was killed.
        (tmp_path / "inbox.json").write_text(json.dumps({"url": f"http://127.0.0.1:{impostor.server_port}", "pid": 1}))
        (tmp_path / "inbox.token").write_text(TOKEN)
        (tmp_path / "inbox.lock").touch()
        threading.Thread(target=impostor.serve_forever, daemon=True).start()
        command = ["sh"] if example.endswith(".sh") else [sys.executable]
        worker = subprocess.run([*command, EXAMPLES / example, tmp_path], capture_output=True, text=True, timeout=300)
        impostor.shutdown()
    assert worker.returncode == 1
    assert f"driftproof inbox {tmp_path}" in worker.stderr
    assert TOKEN not in str(heard)
    assert "Authorization" not in str(heard)


def test_f28_the_proof_is_of_token_address_and_question(run: Path) -> None:
    url = "http://192.0.2.7:8000"
    with serving(run, url=url) as client:
        stranger = Client(client.port, "no token at all")
        for nonce in ("n" * 16, "m" * 64):
            answer = stranger.call(f"/identity?nonce={nonce}")
            assert answer.body == {"url": url, "proof": app.identity_proof(TOKEN, url, nonce)}
        assert len({app.identity_proof(t, u, n) for t in "ab" for u in "cd" for n in "ef"}) == 8
        for bad in ("", "nonce=", "nonce=short", f"nonce={'n' * 65}", "nonce=%1b234567890123456"):
            assert stranger.call(f"/identity?{bad}").status == 422
        assert stranger.call("/identity/").status == 401
        assert stranger.call("/status").status == 401


def test_f28_an_address_left_behind_is_removed_at_once(run: Path) -> None:
    (run / "inbox.json").write_text('{"url": "http://127.0.0.1:9", "pid": 1}')
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be listened on"):
        serve(
            open_inbox(run), run, host="127.0.0.1", port=taken.getsockname()[1], token_environment="", max_megabytes=1,
            say=print,
        )  # fmt: skip
    assert not (run / "inbox.json").exists()


def test_escapes_are_what_they_should_be() -> None:
    assert not harmless(ESCAPES)
    assert printable(ESCAPES).isprintable()
