"""HTTP calls to servers that are named by their address.

Guarantees: no reply takes more memory than its limit, however little of it travels and however long it goes on; the
API key is in no message of ours; proxies of the environment are passed by.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from driftproof.errors import EngineError

REPLY_BYTES = 8 << 20
"""Size limit of a reply that holds no responses."""
_KEEPALIVE_SECONDS = 4.0
"""Idle time of a connection, below the 5 s after which uvicorn, under vLLM and SGLang, closes it."""
_CONNECT_SECONDS = 10.0
# A few bytes of gzip unpack to gigabytes, and replies of a machine nearby gain nothing by it.
_HEADERS = {"Accept-Encoding": "identity"}


class ReplyError(EngineError):
    """A reply that must not be used; the message names the field and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply, whole and within its limit."""

    status: int
    content: bytes
    retry_after: str
    """The Retry-After header, or empty."""

    @property
    def text(self) -> str:
        """The content as text, whatever it is."""
        return self.content.decode(errors="replace")


def server_url(url: str) -> str:
    """`http://host:port` of a URL that may end in `/v1`.

    Raises:
        EngineError: no such URL, or one that carries a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        raise EngineError(f"engine URL {url!r} is not one; it looks like http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise EngineError(
            "an engine URL holds a user or password; name an environment variable with the API key instead"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def open_client(api_key_variable: str) -> httpx2.AsyncClient:
    """A client without time limits of its own, with the key of an environment variable where one is named.

    Raises:
        EngineError: the variable is not set.
    """
    headers = dict(_HEADERS)
    if api_key_variable:
        key = os.environ.get(api_key_variable, "").strip()
        if not key:
            raise EngineError(f"the environment variable {api_key_variable} is to hold the API key, but is not set")
        if not key.isascii() or not key.isprintable():
            raise EngineError(f"the API key in {api_key_variable} has characters that no HTTP header can carry")
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS),
        trust_env=False,
    )


async def send(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    body: dict[str, Any] | None = None,
    *,
    limit: int = REPLY_BYTES,
    extensions: dict[str, Any] | None = None,
) -> Answer:
    """One call.

    Raises:
        httpx2.RequestError: no whole reply. ReplyError: one beyond `limit` bytes, or compressed.
    """
    content = bytearray()
    async with client.stream(method, url, json=body, extensions=extensions) as response:
        _check_encoding(response)
        async for chunk in response.aiter_raw():
            _append(content, chunk, limit)
    return _answer(response, content)


def open_blocking_client(api_key: str, timeout_seconds: float) -> httpx2.Client:
    """A client for `send_blocking`; every call has a connection of its own and `timeout_seconds`."""
    headers = {**_HEADERS, **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    return httpx2.Client(
        headers=headers,
        timeout=httpx2.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
        # A server that failed at one call may close its connection, which the next one would then find closed.
        limits=httpx2.Limits(max_keepalive_connections=0),
        trust_env=False,
    )


def send_blocking(
    client: httpx2.Client,
    method: str,
    url: str,
    body: dict[str, Any] | None = None,
    *,
    params: Mapping[str, str] | None = None,
) -> Answer:
    """One call from a thread that may wait for it.

    Raises:
        EngineError: no whole reply, or one beyond the limit; with the address.
    """
    content = bytearray()
    try:
        with client.stream(method, url, json=body, params=params) as response:
            _check_encoding(response)
            for chunk in response.iter_raw():
                _append(content, chunk, REPLY_BYTES)
    except httpx2.TimeoutException as error:
        raise EngineError(f"{url}: no answer in time ({type(error).__name__})") from error
    except httpx2.HTTPError as error:
        raise EngineError(f"{url}: {describe(error)}") from error
    except ReplyError as error:
        raise EngineError(f"{url}: {error}") from error
    return _answer(response, content)


def describe(error: httpx2.HTTPError) -> str:
    """The error in words; httpx leaves some messages empty."""
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}"


def _check_encoding(response: httpx2.Response) -> None:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise ReplyError(f"body: compressed ({encoding[:20]!r}), which was not asked for")


def _append(content: bytearray, chunk: bytes, limit: int) -> None:
    content += chunk
    if len(content) > limit:
        raise ReplyError(f"body: more than {limit} bytes, the most that an honest reply could have")


def _answer(response: httpx2.Response, content: bytearray) -> Answer:
    return Answer(
        status=response.status_code, content=bytes(content), retry_after=response.headers.get("Retry-After", "")
    )
