"""The HTTP routes of the inbox.

Guarantees: nothing is read from who does not bear the token, and no body above the limit is read whole; whatever is
sent, the answer is JSON that says what was wrong and where.
"""

import hmac
import json
import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, BinaryIO

import anyio.to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from driftproof.errors import CodecError, LedgerError, StaleInboxError, VerifierError
from driftproof.inbox import messages
from driftproof.inbox.service import Inbox

CHUNK = 1 << 20
"""Bytes of a weights file sent at a time."""


def make_app(inbox: Inbox, token: str, max_bytes: int) -> FastAPI:
    """The routes of an inbox; every request must bear `token`, and none may have more than `max_bytes`."""
    app = FastAPI(
        title="driftproof inbox",
        description="Ask for prompts, write responses, send them back: any process becomes a rollout worker.",
        docs_url=None,
        redoc_url=None,
        # The gate asks for the token before a body is read; here it is described.
        dependencies=[Security(HTTPBearer(auto_error=False))],
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

    @app.get("/prompts")
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

    @app.post(
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
        outcomes = await anyio.to_thread.run_sync(inbox.accept, groups.groups, limiter=one_at_a_time)
        if refused := sum(outcome.outcome == "refused" for outcome in outcomes):
            text = f"{refused} of {len(outcomes)} groups were refused; see the problems of each"
            return _problem(422, text, groups=[outcome.model_dump() for outcome in outcomes])
        return messages.Outcomes(groups=outcomes)

    @app.get("/weights/latest", responses={404: {"model": messages.Problem, "description": "None are published yet"}})
    def weights() -> messages.Weights:
        """The newest published weights and their files."""
        found = inbox.weights()
        if found is None:
            raise HTTPException(404, "no weights are published yet; the learner publishes step 0 when it has started")
        return found

    @app.get(
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

    @app.get("/status")
    def status() -> messages.RunStatus:
        """How far the run is."""
        return inbox.status()

    return app


def _add_problems(app: FastAPI) -> None:
    """Whatever goes wrong is answered as a `Problem`."""

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        if isinstance(error.body, bytes):
            return _problem(422, "the body must be JSON, sent with the header 'Content-Type: application/json'")
        said = [f"{_place(wrong)}: {wrong.get('ctx', {}).get('error', wrong['msg'])}" for wrong in error.errors()]
        return _problem(422, "; ".join(messages.shown(said)))

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._bears_token(scope):
            text = "the header 'Authorization: Bearer TOKEN' is missing or has another token than this inbox's"
            await _problem(401, text, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif (length := _header(scope, b"content-length")).isdigit() and int(length) > self._max_bytes:
            await _problem(413, self._too_large)(scope, receive, send)
        else:
            await self._app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        """Takes no more than the limit of a body whose length was not announced."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return limited

    def _bears_token(self, scope: Scope) -> bool:
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from iter(partial(file.read, CHUNK), b"")


def _place(problem: Any) -> str:
    """The place in a request; of broken JSON, the character."""
    if problem["type"] == "json_invalid":
        return f"the body is not JSON, character {problem['loc'][-1]}"
    source, *place = problem["loc"]
    return messages.field_path(place) or str(source)
