"""From a request to its responses: as many calls as it takes, each at a server that has room.

Guarantees: a request ends answered or failed; what was refused is counted and asked for again, with other seeds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from driftproof.engines.openai.client import CompletionClient
from driftproof.engines.openai.pool import Failure, RetryPolicy, Server, ServerPool
from driftproof.engines.openai.wire import Call
from driftproof.engines.protocol import Completed
from driftproof.errors import EngineError
from driftproof.types import Prompt, Request, Response


@dataclass(slots=True, kw_only=True)
class Requests:
    """Answers requests by the servers of a pool."""

    pool: ServerPool
    client: CompletionClient
    policy: RetryPolicy
    render: Callable[[Prompt], str] | None
    """Text of a prompt, where text is sent and responses are re-tokenized."""
    counters: Counter[str]
    """Counts of the engine."""

    async def answer(self, request: Request) -> Completed:
        """The request with its responses, or with the error that ended it."""
        several = all(facts.dialect.several for facts in self.pool.facts)
        parts = [(0, request.samples)] if several else [(first, 1) for first in range(request.samples)]
        tasks = [asyncio.create_task(self._draw(request, first, count)) for first, count in parts]
        try:
            drawn = await asyncio.gather(*tasks)
        except EngineError as error:
            self.counters["failed_requests"] += 1
            return Completed(request=request, responses=(), error=self.client.without_key(str(error)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Completed(request=request, responses=tuple(response for part in drawn for response in part))

    async def _draw(self, request: Request, first: int, count: int) -> list[Response]:
        """`count` responses, from as many calls as it takes.

        Raises:
            EngineError: too many calls failed, one in a way that asking again cannot mend, or no server is left.
        """
        responses: list[Response] = []
        calls = failures = 0
        while len(responses) < count:
            missing = count - len(responses)
            server = await self.pool.reserve(missing)
            # Every call draws with seeds of its own: what a seed gave once, good or bad, it gives again.
            call = self._make_call(server, request, missing, offset=first + calls * request.samples)
            calls += 1
            try:
                reply = await self.client.complete(server.known_facts, call)
            except Failure as failure:
                self.pool.record_failure(server, failure)
                failures, problem, final = failures + 1, str(failure), failure.final
            else:
                server.failures = 0
                responses += reply.responses
                failures, problem, final = failures + bool(reply.problems), "; ".join(reply.problems), False
                self.counters["errors.invalid_reply"] += bool(reply.problems)
                self.counters["missing_samples"] += missing - len(reply.responses)
            finally:
                self.pool.release(server, missing)
            if len(responses) == count:
                break
            if final or failures >= self.policy.attempts:
                raise EngineError(f"after {failures} failed attempts, the last at {server.url}: {problem}")
            self.counters["retries"] += 1
            if failures:
                await asyncio.sleep(self.policy.pause(failures))
        return responses

    def _make_call(self, server: Server, request: Request, samples: int, *, offset: int) -> Call:
        limit, longest = request.sampling.max_tokens, server.known_facts.max_length
        if longest is not None:
            limit = max(1, min(limit, longest - len(request.prompt_tokens)))
        text = self.render(request.prompt) if self.render else None
        return Call(request=request, samples=samples, offset=offset, max_tokens=limit, prompt_text=text)
