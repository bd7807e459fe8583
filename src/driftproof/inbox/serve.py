"""The process of an inbox: one per run, on the loopback unless told otherwise, with a token, until it is stopped."""

import ipaddress
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from driftproof.errors import ConfigError
from driftproof.inbox.app import make_app
from driftproof.inbox.server import Server
from driftproof.inbox.service import Inbox
from driftproof.run import RunDirectory, taken, written_whole

SHORTEST_TOKEN = 16
"""Characters."""
MAX_MEGABYTES = 1024
"""Upper end of `--max-megabytes`."""
_LOCK_SECONDS = 2.0
"""How long the lock is asked for: a client that looks whether there is an inbox holds it for a moment."""


def serve(
    inbox: Inbox,
    run: Path,
    *,
    host: str,
    port: int,
    token_environment: str,
    max_megabytes: int,
    say: Callable[[str], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM; must be called in the main thread.

    Port 0 takes a free one; the address stands in a file of the run while the inbox serves. The token is in the
    environment variable `token_environment`, or, where that is empty, in a file of the run, which is made when it is
    not there. `say` gets the lines for the user; they never hold the token.

    ConfigError where the run has an inbox already, the address cannot be bound, the token is of no use, or no request
    could be taken.
    """
    if not 1 <= max_megabytes <= MAX_MEGABYTES:
        raise ConfigError(f"--max-megabytes is {max_megabytes}; 1 to {MAX_MEGABYTES:,} are possible, 64 is the default")
    directory = RunDirectory(path=run)
    with closing(inbox), _lock(directory), _listen(host, port) as listening:
        token, source = _token(directory, token_environment)
        url = f"http://[{host}]" if ":" in host else f"http://{host}"
        url = f"{url}:{listening.getsockname()[1]}"
        server = Server(make_app(inbox, token, max_megabytes * 2**20, url))
        with _announced(directory.inbox, url):
            say(f"inbox of {run} at {url} (its description: {url}/openapi.json)")
            say(f"token in {source}")
            if not _is_loopback(host):
                say(f"warning: {host} can be reached from outside, and HTTP is not encrypted, the token included")
            with _signals_survived():
                server.run(sockets=[listening])


def _lock(run: RunDirectory) -> IO[str]:
    """The run's lock file, held as long as it is open."""
    file, deadline = run.inbox_lock.open("a"), time.monotonic() + _LOCK_SECONDS
    while not taken(file.fileno()):
        if time.monotonic() > deadline:
            file.close()
            raise ConfigError(
                f"{run.path} has an inbox already (its address: {run.inbox}); one serves any number of workers"
            )
        time.sleep(0.05)
    # An inbox that was killed has left its address, where anybody may listen by now.
    run.inbox.unlink(missing_ok=True)
    return file


def _token(run: RunDirectory, environment: str) -> tuple[str, str]:
    """The token, and where it comes from, for the user."""
    if environment:
        token, source = os.environ.get(environment, ""), f"the environment variable {environment}"
    else:
        token, source = _file_token(run.inbox_token), str(run.inbox_token)
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"{source} holds no token of {SHORTEST_TOKEN} or more ASCII characters without spaces; "
            + ("set it" if environment else "remove the file and a new one is made")
        )
    return token, source


def _file_token(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others; make it yours alone: chmod 600 {path}") from None
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(f"{token}\n")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{host} port {port} cannot be listened on: {error}; --port 0 takes a free one") from error
    # asyncio sets this on sockets that it makes; without it every answer waits 40 ms for the client's ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


@contextmanager
def _announced(path: Path, url: str) -> Iterator[None]:
    """The address in a file, as long as it is good."""
    with written_whole(path, durable=False) as partial:
        partial.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _signals_survived() -> Iterator[None]:
    """The server stops on these signals and then raises them again, which must not end this process half-way."""
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
