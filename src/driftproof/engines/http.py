"""HTTP calls to servers that are named by their address.

Guarantees: no reply takes more memory than its limit, however little of it travels and however long it goes on; the
API key is in no message of ours; proxies of the environment are passed by.
"""

import asyncio
import os
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


class CallError(EngineError):
    """A call that gave nothing: counted as `kind`; `final`: asking again cannot help; the server wants to be left alone
    for `retry_after` seconds."""

    def __init__(self, message: str, *, kind: str, final: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.final = final
        self.retry_after = retry_after


class Unreachable(CallError):
    """No answer now, perhaps later; its kind is `timeout`, `refused`, `disconnected` or `unwell`."""


class ReplyError(CallError):
    """A reply that must not be used; the message names the field and what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="invalid_reply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply, whole and within its limit; `retry_after` is the header, or empty."""

    status: int
    content: bytes
    retry_after: str

    @property
    def text(self) -> str:
        """The content as text, whatever it is."""
        return self.content.decode(errors="replace")


def server_url(url: str) -> str:
    """`http://host:port` of a URL that may end in `/v1`; EngineError where it is none, or carries a password."""
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


def open_client(api_key_variable: str = "", *, reuse: bool = True) -> httpx2.AsyncClient:
    """A client with the key of an environment variable, if named; unless `reuse`, every call has its own connection."""
    # A few bytes of gzip unpack to gigabytes, and replies of a machine nearby gain nothing by it.
    headers = {"Accept-Encoding": "identity"}
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
        limits=httpx2.Limits(max_keepalive_connections=None if reuse else 0, keepalive_expiry=_KEEPALIVE_SECONDS),
        trust_env=False,
    )


async def send(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    body: dict[str, Any] | None = None,
    *,
    seconds: float,
    limit: int = REPLY_BYTES,
    **options: Any,
) -> Answer:
    """One call of at most `seconds` whose reply has at most `limit` bytes, and is not compressed, or a `CallError`."""
    content = bytearray()
    try:
        async with asyncio.timeout(seconds), client.stream(method, url, json=body, **options) as response:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise ReplyError(f"{url}: compressed ({encoding[:20]!r}), which was not asked for")
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > limit:
                    raise ReplyError(f"{url}: more than {limit} bytes, the most that an honest reply could have")
    except TimeoutError as error:
        raise Unreachable(f"{url}: no answer within {seconds:g} s", kind="timeout") from error
    except httpx2.RequestError as error:
        kind = "refused" if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) else "disconnected"
        # Some messages of httpx are empty.
        said = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
        raise Unreachable(f"{url}: {said}", kind=kind) from error
    retry_after = response.headers.get("Retry-After", "")
    return Answer(status=response.status_code, content=bytes(content), retry_after=retry_after)
