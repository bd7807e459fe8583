"""One call to a completion server, from the request to a checked reply.

Guarantees: a reply is checked before it is believed, and takes no more memory than the tokens asked for can; no reply
is believed of a process that was started again after it was given its weights; the API key is in no message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from driftproof.engines.http import REPLY_BYTES, Answer, ReplyError, Unreachable, send
from driftproof.engines.openai.pool import Failure
from driftproof.engines.openai.probe import ServerFacts, start_time
from driftproof.engines.openai.wire import Call, Reply, build_body, read_reply

_MESSAGE = 300
"""Most characters of a server's own message that are passed on."""
_TOKEN_BYTES = 512
"""Size limit of a token in a reply: its id, its text, and its log-prob under several names."""


@dataclass(slots=True, kw_only=True)
class CompletionClient:
    """Asks servers for responses; whatever goes wrong is a `Failure` with its kind."""

    http: httpx2.AsyncClient
    vocabulary: int
    """Bound of token ids."""
    encode: Callable[[str], list[int]] | None
    """Token ids of a text, the end-of-sequence token last, where responses are re-tokenized."""
    timeout_seconds: float
    """Time limit of one reply."""
    follows_weights: bool
    """Whether a restarted server would have other weights than it was given."""
    counters: Counter[str]
    """Counts of the engine; `calls` is counted here."""

    async def complete(self, facts: ServerFacts, call: Call) -> Reply:
        """Send a call, and check the reply.

        Raises:
            Failure: it gave nothing.
        """
        connected = False

        async def trace(event: str, _: Mapping[str, Any]) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.complete"

        self.counters["calls"] += 1
        try:
            answer = await send(
                self.http,
                "POST",
                facts.url + facts.dialect.route,
                build_body(facts.dialect, call, facts.model),
                seconds=self.timeout_seconds,
                limit=REPLY_BYTES + _TOKEN_BYTES * call.samples * (len(call.request.prompt_tokens) + call.max_tokens),
                extensions={"trace": trace},
            )
            if answer.status != 200:
                raise self._refusal(answer)
            reply = read_reply(facts.dialect, answer.content, call, vocabulary=self.vocabulary, encode=self.encode)
        except Unreachable as error:
            raise Failure(error.kind, str(error), lost=error.kind == "refused") from error
        except ReplyError as error:
            raise Failure("invalid_reply", str(error)) from error
        # A process that was started again has no old connections: only what came over a new one can be its work.
        if connected and self.follows_weights:
            await self._check_identity(facts)
        return reply

    def without_key(self, text: str) -> str:
        """A server's words without our key, should it repeat it."""
        key = self.http.headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(key, "***") if key else text

    async def _check_identity(self, facts: ServerFacts) -> None:
        try:
            started = await start_time(self.http, facts.url)
        except Unreachable as error:
            raise Failure("refused", str(error), lost=True) from error
        if started != facts.started:
            raise Failure("restarted", "started again, with the weights it was first given", lost=True)

    def _refusal(self, answer: Answer) -> Failure:
        said = " ".join(self.without_key(answer.text).split())[:_MESSAGE]
        return Failure(
            f"status_{answer.status}",
            f"status {answer.status}{': ' if said else ''}{said}",
            final=400 <= answer.status < 500 and answer.status not in (408, 409, 425, 429),
            retry_after=_retry_after(answer.retry_after),
        )


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
