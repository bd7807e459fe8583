"""The HTTP routes of the inbox.

Guarantees: nothing is read from who does not bear the token; no body above the limit is read whole, and all bodies
together take a few times as much; they are parsed beside the event loop, so that others are answered meanwhile;
whatever is sent, the answer is JSON that says what was wrong and where; who bears the token can tell this inbox from
whatever else may listen at its address, before showing the token.
"""

import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Annotated, Any, BinaryIO

import anyio.to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from driftproof.errors import CodecError, LedgerError, StaleInboxError, VerifierError
from driftproof.inbox import messages
from driftproof.inbox.reading import BodyError, read_groups
from driftproof.inbox.service import Inbox

CHUNK = 1 << 20
"""Bytes of a weights file sent at a time."""
BODIES = 4
"""Bodies of the largest size that there is room for at once."""
DRAINED_BYTES = 256 << 20
"""Largest body that is too large and is received all the same, and dropped, so that its sender hears of it."""
IDENTITY = "/identity"
"""The one route that needs no token."""


def make_app(inbox: Inbox, token: str, max_bytes: int, url: str = "") -> FastAPI:
    """The routes of an inbox; every request must bear `token`, and none may have more than `max_bytes`, or than its
    groups can have. `url` is the address under which the inbox is announced."""
    size = inbox.group_size
    max_bytes = min(max_bytes, size.body_bytes)
    app = FastAPI(
        title="driftproof inbox",
        description="Ask for prompts, write responses, send them back: any process becomes a rollout worker.",
        docs_url=None,
        redoc_url=None,
        responses={
            401: {"model": messages.Problem, "description": "No token, or another than that of this inbox"},
            422: {"model": messages.Problem, "description": "A field is wrong; the error names it"},
            503: {
                "model": messages.Problem,
                "description": "Not now: ledger, disk, verifier or settings; the error says which",
            },
        },
    )
    app.add_middleware(_Gate, token=token, max_bytes=max_bytes)
    _add_problems(app)
    one_at_a_time = anyio.CapacityLimiter(1)

    def take(body: bytes) -> list[messages.Outcome]:
        return inbox.accept(read_groups(body, size))

    # The gate asks for the token before a body is read; here it is described.
    routes = APIRouter(dependencies=[Security(HTTPBearer(auto_error=False))], route_class=_Route)

    @app.get(IDENTITY)
    def identity(
        nonce: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{16,64}$", description="a new random text for each call")],
    ) -> messages.Identity:
        """Prove that this is the inbox that the token is of, before it is sent: the address may be another's by now.

        `proof` is the HMAC-SHA256, in hexadecimal digits, of the text `driftproof inbox URL NONCE` with the token as
        its key, where URL is the address in the run's inbox.json.
        """
        return messages.Identity(url=url, proof=identity_proof(token, url, nonce))

    @routes.get("/prompts")
    def prompts(
        n: Annotated[int, Query(ge=1, description=f"groups wanted; at most {messages.MAX_PROMPTS} are given")] = 1,
        worker: Annotated[messages.WorkerName, Query()] = "anonymous",
    ) -> messages.Prompts:
        """Lease groups to be written.

        There are none while the learner has not caught up, or the run is stopping or finished: see `state` and
        `retry_after_seconds`. A group whose lease has expired is given to the next who asks; until then it is accepted
        late, too.
        """
        return inbox.lease(worker, n)

    @routes.post(
        "/groups",
        response_model=messages.Outcomes,
        responses={
            413: {"model": messages.Problem, "description": "The body is too large; send fewer groups at once"},
            400: {"model": messages.Problem, "description": "The body cannot be read"},
            422: {"model": messages.SomeRefused, "description": "Groups were refused; those `accepted` are recorded"},
        },
    )
    async def groups(groups: messages.Groups) -> messages.Outcomes | Response:
        """Record written groups.

        The answer says of each group whether it was `accepted`, is a `duplicate` (recorded already, or given to another
        worker when its lease had expired), or was `refused` and why. Every group is judged by itself: the good groups
        of a request with bad ones are recorded. The status is 200 where none was refused, else 422. To send a request
        again is safe: a group is accepted once.
        """
        assert isinstance(groups, _UnreadGroups)
        outcomes = await anyio.to_thread.run_sync(take, groups.body, limiter=one_at_a_time)
        if refused := sum(outcome.outcome == "refused" for outcome in outcomes):
            text = f"{refused} of {len(outcomes)} groups were refused; see the problems of each"
            return _problem(422, text, groups=[outcome.model_dump() for outcome in outcomes])
        return messages.Outcomes(groups=outcomes)

    @routes.get(
        "/weights/latest", responses={404: {"model": messages.Problem, "description": "None are published yet"}}
    )
    def weights() -> messages.Weights:
        """The newest published weights and their files."""
        found = inbox.weights()
        if found is None:
            raise HTTPException(404, "no weights are published yet; the learner publishes step 0 when it has started")
        return found

    @routes.get(
        "/weights/{step}/{file}",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/octet-stream": {}}, "description": "The file"},
            404: {"model": messages.Problem, "description": "There is no such file, or none any more"},
        },
    )
    def weights_file(step: Annotated[int, InPath(ge=0)], file: str) -> StreamingResponse:
        """A file of the weights of a step. Old weights are removed: ask for the latest again after a 404."""
        content = inbox.weights_file(step, file)
        if content is None:
            raise HTTPException(404, f"step {step} has no file of that name, or is pruned; see /weights/latest")
        headers = {"Content-Length": str(os.fstat(content.fileno()).st_size)}
        return StreamingResponse(_chunks(content), media_type="application/octet-stream", headers=headers)

    @routes.get("/status")
    def status() -> messages.RunStatus:
        """How far the run is."""
        return inbox.status()

    app.include_router(routes)
    return app


def identity_proof(token: str, url: str, nonce: str) -> str:
    """The proof of an inbox at an address, which nobody without the token can give."""
    return hmac.new(token.encode(), f"driftproof inbox {url} {nonce}".encode(), hashlib.sha256).hexdigest()


class _UnreadGroups(messages.Groups):
    """Groups as they were sent: they are read beside the event loop, those of one request at a time."""

    body: bytes


class _Request(Request):
    async def json(self) -> _UnreadGroups:
        return _UnreadGroups.model_construct(body=await self.body())


class _Route(APIRoute):
    """A route that leaves its body unread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_unread(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handle_unread


def _add_problems(app: FastAPI) -> None:
    """Whatever goes wrong is answered as a `Problem`."""

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        if isinstance(error.body, bytes):
            return _problem(422, "the body must be JSON, sent with the header 'Content-Type: application/json'")
        places = [messages.field_path(wrong["loc"][1:]) or wrong["loc"][0] for wrong in error.errors()]
        said = [f"{place}: {wrong['msg']}" for place, wrong in zip(places, error.errors(), strict=True)]
        return _problem(422, "; ".join(messages.shown(said)))

    @app.exception_handler(BodyError)
    def unreadable(_: Request, error: BodyError) -> Response:
        return _problem(error.status, str(error))

    @app.exception_handler(StarletteHTTPException)
    def http(_: Request, error: StarletteHTTPException) -> Response:
        return _problem(error.status_code, error.detail, error.headers)

    for kind in (sqlite3.Error, LedgerError, CodecError, VerifierError, StaleInboxError, OSError):
        app.add_exception_handler(kind, lambda _, error: _problem(503, str(error)))


def _problem(status: int, text: str, headers: Any = None, **more: Any) -> Response:
    # In ASCII: half of a surrogate pair, which JSON may hold, cannot be sent otherwise.
    return Response(json.dumps({"error": text, **more}), status, headers, media_type="application/json")


class _Gate:
    """Lets requests through that have the token and are not too large; the others are answered before they are read."""

    def __init__(self, app: ASGIApp, token: str, max_bytes: int) -> None:
        self._app, self._token, self._max_bytes = app, token.encode(), max_bytes
        self._too_large = f"the body has more than {max_bytes:,} bytes; send fewer groups at once"
        self._held = 0
        """Bytes of the bodies of all requests under way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == IDENTITY:
            await self._app(scope, _nothing, send)
        elif not self._bears_token(scope):
            text = "the header 'Authorization: Bearer TOKEN' is missing or has another token than this inbox's"
            await _problem(401, text, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif (length := _header(scope, b"content-length")).isdigit() and int(length) > self._max_bytes:
            # Most clients look for an answer only when they have sent all.
            while int(length) <= DRAINED_BYTES and (await receive()).get("more_body"):
                pass
            await _problem(413, self._too_large)(scope, receive, send)
        else:
            await self._app_within_limits(scope, receive, send)

    async def _app_within_limits(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes no more than the limit of a body whose length was not announced, and of all bodies together."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            count = len(message.get("body", b""))
            read += count
            self._held += count
            if read > self._max_bytes:
                raise HTTPException(413, self._too_large)
            if self._held > BODIES * self._max_bytes:
                raise HTTPException(503, "too many large bodies are under way; send this one again in a moment")
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._held -= read

    def _bears_token(self, scope: Scope) -> bool:
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from iter(partial(file.read, CHUNK), b"")
