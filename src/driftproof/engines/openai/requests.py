"""From a request to its responses: as many calls as it takes, each at a server that has room.

Guarantees: a request ends answered or failed; a reply is checked before it is believed, and takes no more memory than
the tokens asked for can; what was refused is counted and asked for again, with other seeds; no reply is believed of a
process that was started again after it was given its weights; the API key is in no message.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from driftproof.engines.http import REPLY_BYTES, Answer, CallError, Unreachable, send
from driftproof.engines.openai.pool import Server, ServerPool
from driftproof.engines.openai.probe import ServerFacts, start_time
from driftproof.engines.openai.wire import Call, Reply, build_body, read_reply
from driftproof.engines.protocol import Completed
from driftproof.errors import EngineError
from driftproof.tasks.codec import Codec
from driftproof.types import Request, Response

_MESSAGE = 300
"""Most characters of a server's own message that are passed on."""
TOKEN_BYTES = 512
"""Size limit of a token in a reply: its id, its text, and its log-prob under several names."""


@dataclass(slots=True, kw_only=True)
class Requests:
    """Answers requests by the servers of a pool."""

    pool: ServerPool
    http: httpx2.AsyncClient
    vocabulary: int
    """Bound of token ids."""
    retokenizer: Codec | None
    """Makes text of prompts and tokens of responses, where text is sent and taken."""

    async def answer(self, request: Request) -> Completed:
        """The request with its responses, or with the error that ended it."""
        several = all(facts.dialect.several for facts in self.pool.facts)
        parts = [(0, request.samples)] if several else [(first, 1) for first in range(request.samples)]
        tasks = [asyncio.create_task(self._draw(request, first, count)) for first, count in parts]
        try:
            drawn = await asyncio.gather(*tasks)
        except EngineError as error:
            self.pool.counters["failed_requests"] += 1
            return Completed(request=request, responses=(), error=self._without_key(str(error)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Completed(request=request, responses=tuple(response for part in drawn for response in part))

    async def _draw(self, request: Request, first: int, count: int) -> list[Response]:
        """`count` responses, from as many calls as it takes; EngineError where too many failed, or one for good."""
        policy, counters = self.pool.policy, self.pool.counters
        responses: list[Response] = []
        calls = failures = 0
        while True:
            missing = count - len(responses)
            server = await self.pool.reserve(missing)
            try:
                # Every call draws with seeds of its own: what a seed gave once, good or bad, it gives again.
                reply = await self._call(server, request, missing, offset=first + calls * request.samples)
            except CallError as failure:
                self.pool.record_failure(server, failure)
                failures, problem, final = failures + 1, str(failure), failure.final
            else:
                server.failures = 0
                responses += reply.responses
                failures, problem, final = failures + bool(reply.problems), "; ".join(reply.problems), False
                counters["errors.invalid_reply"] += bool(reply.problems)
                counters["missing_samples"] += missing - len(reply.responses)
            finally:
                calls += 1
                self.pool.release(server, missing)
            if len(responses) == count:
                return responses
            if final or failures >= policy.attempts:
                raise EngineError(f"after {failures} failed attempts, the last at {server.url}: {problem}")
            counters["retries"] += 1
            if failures:
                await asyncio.sleep(policy.pause(failures))

    async def _call(self, server: Server, request: Request, samples: int, *, offset: int) -> Reply:
        """Make one call, and check the reply."""
        facts, coder, connected = server.facts, self.retokenizer, False
        assert facts is not None, "a server that was never live"
        limit, prompt_length = request.sampling.max_tokens, len(request.prompt_tokens)
        if facts.max_length is not None:
            limit = max(1, min(limit, facts.max_length - prompt_length))
        text = coder.render(request.prompt) if coder else None
        call = Call(request=request, samples=samples, offset=offset, max_tokens=limit, prompt_text=text)

        async def trace(event: str, _: Mapping[str, Any]) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.complete"

        self.pool.counters["calls"] += 1
        answer = await send(
            self.http,
            "POST",
            facts.url + facts.dialect.route,
            build_body(facts.dialect, call, facts.model),
            seconds=self.pool.policy.timeout_seconds,
            limit=reply_bytes(request, samples, limit),
            extensions={"trace": trace},
        )
        if answer.status != 200:
            raise self._refusal(answer)
        encode = coder.encode_response if coder else None
        reply = read_reply(facts.dialect, answer.content, call, vocabulary=self.vocabulary, encode=encode)
        # A process that was started again has no old connections: only what came over a new one can be its work.
        if connected and self.pool.updater is not None:
            await self._check_identity(facts)
        return reply

    async def _check_identity(self, facts: ServerFacts) -> None:
        try:
            started = await start_time(self.http, facts.url)
        except Unreachable as error:
            raise CallError(str(error), kind="refused") from error
        if started != facts.started:
            raise CallError("started again, with the weights it was first given", kind="restarted")

    def _refusal(self, answer: Answer) -> CallError:
        said = " ".join(self._without_key(answer.text).split())[:_MESSAGE]
        return CallError(
            f"status {answer.status}{': ' if said else ''}{said}",
            kind=f"status_{answer.status}",
            final=400 <= answer.status < 500 and answer.status not in (408, 409, 425, 429),
            retry_after=_retry_after(answer.retry_after),
        )

    def _without_key(self, text: str) -> str:
        """A server's words without our key, should it repeat it."""
        key = self.http.headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(key, "***") if key else text


def reply_bytes(request: Request, samples: int, max_tokens: int) -> int:
    """The most that a reply with so many samples of so many tokens can have; servers repeat the prompt in each."""
    return REPLY_BYTES + TOKEN_BYTES * samples * (len(request.prompt_tokens) + max_tokens)


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date."""
    value = value.strip()
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())
