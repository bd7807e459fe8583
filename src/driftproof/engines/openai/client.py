"""The engine `openai`: completion servers over HTTP, several at once, in whatever weather.

Guarantees: every submitted request comes out of `collect` exactly once; a response is checked before it is believed,
and what is refused is counted and asked for again; a server that dies is set aside, asked again with back-off and taken
back; no server with an updater gets work before it has the newest weights, nor is its reply believed when its process
was started again in between; the API key is in no message.

An address must be that of one server: behind a load balancer no restart could be noticed.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
import numpy as np

from driftproof.engines.openai.pool import Failure, Fleet, Patience, Server, Updater
from driftproof.engines.openai.probe import (
    ServerFacts,
    Unreachable,
    check_tokenizer,
    describe,
    look,
    open_client,
    server_url,
    start_time,
)
from driftproof.engines.openai.wire import Call, Reply, ReplyError, build_body, read_reply
from driftproof.engines.protocol import Capabilities, Completed
from driftproof.errors import EngineError
from driftproof.types import Prompt, Request, Response

T = TypeVar("T")

_POLL_SECONDS = 0.02
"""How long `collect` waits for an answer."""
_MESSAGE = 300
"""Most characters of a server's own message that are passed on."""


class Tokenizer(Protocol):
    """What the engine asks of the learner's codec."""

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a text, the end-of-sequence token last."""
        ...

    def render(self, prompt: Prompt) -> str:
        """The text whose token ids a request's prompt is, without special tokens that every text begins with."""
        ...


class OpenAIEngine:
    """One or more servers behind the `Engine` protocol; the HTTP runs in a thread of its own."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        vocabulary: int,
        tokenizer: Tokenizer,
        sample_text: str,
        model: str = "",
        patience: Patience | None = None,
        retokenize: bool = False,
        updater: Updater | None = None,
        api_key_variable: str = "",
    ) -> None:
        """Ask every server what it can do. One that does not answer is set aside, as long as another does.

        Args:
            urls: like `http://127.0.0.1:8000`, one per server.
            vocabulary: the learner's; token ids lie below it.
            tokenizer: the learner's.
            sample_text: tokenized by the servers too, to see whether they agree with `tokenizer`; a prompt of the task.
            model: one of the names that the servers know; default the first of each.
            patience: limits.
            retokenize: send and take text, and make tokens of it with `tokenizer`.
            updater: brings new weights to the servers.
            api_key_variable: name of the environment variable that holds the API key; empty is none.

        Raises:
            EngineError: no server answers, or one of them cannot be used; the message says what to change.
        """
        if not urls:
            raise EngineError("the engine openai needs the address of a server: --engine.url http://127.0.0.1:8000")
        self._patience = patience or Patience()
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._sample_text = sample_text
        self._model = model
        self._retokenize = retokenize
        self._updater = updater
        self._counters: Counter[str] = Counter()
        self._keys: set[int] = set()
        self._under_way = 0
        self._done: queue.SimpleQueue[Completed | BaseException] = queue.SimpleQueue()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._client = open_client(api_key_variable)
        self._secret = self._client.headers.get("Authorization", "").removeprefix("Bearer ")
        self._fleet = Fleet(
            list(dict.fromkeys(map(server_url, urls))),
            examine=self._examine,
            patience=self._patience,
            updater=updater,
            counters=self._counters,
            spawn=self._spawn,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)
        self._thread.start()
        try:
            self._run(self._fleet.open())
        except BaseException:
            self.close()
            raise

    # The protocol, called from the worker's thread.

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            logprobs=not self._retokenize and all(facts.logprobs for facts in self.facts),
            follows_weights=self._updater is not None,
        )

    @property
    def facts(self) -> tuple[ServerFacts, ...]:
        """Of the servers that have answered so far."""
        return self._fleet.facts

    @property
    def counters(self) -> dict[str, float]:
        """Counted since the start: `calls`, `retries`, `missing_samples`, `set_asides`, `taken_back`, `updates`, and
        `errors.KIND` for every kind of error that was met; and those of the updater."""
        return {**self._counters, **(self._updater.counters if self._updater else {})}

    @property
    def room(self) -> int:
        return max(0, self._fleet.slots - self._under_way)

    def submit(self, request: Request) -> None:
        """Hand a request to the servers.

        Raises:
            EngineError: closed, key already under way, a prompt that no server can take, or log-probs that none gives.
        """
        where = f"request {request.key} (prompt {request.prompt.index})"
        if self._closed:
            raise EngineError(f"{where}: the engine is closed")
        if request.key in self._keys:
            raise EngineError(f"{where}: a request with this key is already under way; keys must be unique")
        if request.samples < 1:
            raise EngineError(f"{where}: samples is {request.samples}; at least 1 response must be wanted")
        self._check_prompt(where, request)
        if request.want_logprobs:
            self._check_logprobs(where, request)
        self._keys.add(request.key)
        self._under_way += request.samples
        self._loop.call_soon_threadsafe(self._start, request)

    def collect(self) -> list[Completed]:
        """What was completed since the last call; waits a moment where something is under way.

        Raises whatever unexpected ended the work of the other thread: an error in the updater, or in this engine.
        """
        completed: list[Completed] = []
        try:
            while self._keys:
                item = self._done.get(timeout=0 if completed else _POLL_SECONDS)
                if isinstance(item, BaseException):
                    raise item
                self._keys.remove(item.request.key)
                self._under_way -= item.request.samples
                completed.append(item)
        except queue.Empty:
            pass
        return completed

    def load(self, snapshot: Path) -> None:
        """Bring the weights of a snapshot to every live server, at once; one that does not take them is set aside, and
        gets them before it is used again.

        Raises:
            EngineError: closed.
            FileNotFoundError: no snapshot there, or no longer.
        """
        if self._updater is None:
            return
        if self._closed:
            raise EngineError(f"{snapshot} cannot be loaded: the engine is closed")
        if not snapshot.is_dir():
            raise FileNotFoundError(f"snapshot {snapshot} does not exist")
        self._run(self._fleet.load(snapshot))

    def close(self) -> None:
        """Drop all work; may be called more than once."""
        if self._closed:
            return
        self._closed = True
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._keys.clear()
        self._under_way = 0

    def _check_prompt(self, where: str, request: Request) -> None:
        prompt = request.prompt_tokens
        if not len(prompt):
            raise EngineError(f"{where}: the prompt has no tokens")
        if int(np.min(prompt)) < 0 or int(np.max(prompt)) >= self._vocabulary:
            raise EngineError(
                f"{where}: token ids range from {np.min(prompt)} to {np.max(prompt)}, the model's vocabulary from 0 to "
                f"{self._vocabulary - 1}; the tokenizer belongs to another model"
            )
        longest = min((facts.max_length for facts in self.facts if facts.max_length), default=None)
        if longest is not None and len(prompt) >= longest:
            raise EngineError(
                f"{where}: the prompt has {len(prompt)} tokens and leaves no room for a response in the servers' "
                f"context of {longest}; drop the prompt, or start the servers with more (vLLM: --max-model-len, "
                "llama.cpp: --ctx-size)"
            )

    def _check_logprobs(self, where: str, request: Request) -> None:
        for facts in self.facts:
            if not facts.logprobs or self._retokenize:
                raise EngineError(
                    f"{where}: {facts.url} gives no log-probs of its tokens; choose an objective that needs none, such "
                    "as asympo, spo or naive"
                )
            if request.sampling.temperature != 1 and not facts.tempered_logprobs:
                raise EngineError(
                    f"{where}: {facts.url} gives log-probs of temperature 1, not of the {request.sampling.temperature} "
                    "it samples at; start vLLM with --logprobs-mode processed_logprobs, or set sampling.temperature = 1"
                )

    # Everything below runs in the engine's thread, and so needs no locks for what it shares.

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task whose unexpected end the worker hears of."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._done.put(error)

        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    # Requests.

    def _start(self, request: Request) -> None:
        self._spawn(self._answer(request))

    async def _answer(self, request: Request) -> None:
        """Put the request, answered or failed, where `collect` finds it."""
        several = all(facts.dialect.several for facts in self.facts)
        parts = [(0, request.samples)] if several else [(first, 1) for first in range(request.samples)]
        tasks = [self._loop.create_task(self._part(request, first, count)) for first, count in parts]
        try:
            drawn = await asyncio.gather(*tasks)
        except EngineError as error:
            self._counters["failed_requests"] += 1
            self._done.put(Completed(request=request, responses=(), error=self._clean(str(error))))
        else:
            self._done.put(Completed(request=request, responses=tuple(response for part in drawn for response in part)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _part(self, request: Request, first: int, count: int) -> list[Response]:
        """`count` responses, from as many calls as it takes.

        Raises:
            EngineError: too many calls failed, one in a way that asking again cannot mend, or no server is left.
        """
        responses: list[Response] = []
        calls = failures = 0
        while len(responses) < count:
            missing = count - len(responses)
            server = await self._fleet.reserve(missing)
            # Every call draws with seeds of its own: what a seed gave once, good or bad, it gives again.
            offset = first + calls * request.samples
            calls += 1
            try:
                reply = await self._call(server, self._make_call(server, request, missing, offset))
            except Failure as failure:
                self._fleet.blame(server, failure)
                failures, trouble, final = failures + 1, str(failure), failure.final
            else:
                server.strikes = 0
                responses += reply.responses
                failures, trouble, final = failures + bool(reply.problems), "; ".join(reply.problems), False
                self._counters["errors.invalid_reply"] += bool(reply.problems)
                self._counters["missing_samples"] += missing - len(reply.responses)
            finally:
                self._fleet.release(server, missing)
            if len(responses) == count:
                break
            if final or failures >= self._patience.attempts:
                raise EngineError(f"after {failures} failed attempts, the last at {server.url}: {trouble}")
            self._counters["retries"] += 1
            if failures:
                await asyncio.sleep(self._patience.pause(failures))
        return responses

    def _make_call(self, server: Server, request: Request, samples: int, offset: int) -> Call:
        assert server.facts is not None
        limit = request.sampling.max_tokens
        if server.facts.max_length is not None:
            limit = max(1, min(limit, server.facts.max_length - len(request.prompt_tokens)))
        text = self._tokenizer.render(request.prompt) if self._retokenize else None
        return Call(request=request, samples=samples, offset=offset, max_tokens=limit, prompt_text=text)

    async def _call(self, server: Server, call: Call) -> Reply:
        """One HTTP request; raises `Failure`."""
        facts = server.facts
        assert facts is not None
        connected = False

        async def trace(event: str, _: Mapping[str, Any]) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.complete"

        self._counters["calls"] += 1
        response = await self._post(facts, call, {"trace": trace})
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            reply = read_reply(
                facts.dialect,
                response.content,
                call,
                vocabulary=self._vocabulary,
                encode=self._tokenizer.encode_response if self._retokenize else None,
            )
        except ReplyError as error:
            raise Failure("invalid_reply", str(error)) from error
        # A process that was started again has no old connections: only what came over a new one can be its work.
        if connected and self._updater is not None:
            await self._check_identity(facts)
        return reply

    async def _post(self, facts: ServerFacts, call: Call, extensions: dict[str, Any]) -> httpx2.Response:
        body = build_body(facts.dialect, call, facts.model)
        try:
            async with asyncio.timeout(self._patience.timeout_seconds):
                return await self._client.post(facts.url + facts.dialect.route, json=body, extensions=extensions)
        except TimeoutError as error:
            raise Failure("timeout", f"no reply within {self._patience.timeout_seconds:g} s") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Failure("refused", f"no connection ({describe(error)})", lost=True) from error
        except httpx2.RequestError as error:
            raise Failure("disconnected", f"the connection broke ({describe(error)})") from error

    async def _check_identity(self, facts: ServerFacts) -> None:
        try:
            started = await start_time(self._client, facts.url)
        except Unreachable as error:
            raise Failure("refused", str(error), lost=True) from error
        if started != facts.started:
            raise Failure("restarted", "started again, with the weights it was first given", lost=True)

    def _refusal(self, response: httpx2.Response) -> Failure:
        status = response.status_code
        said = " ".join(self._clean(response.text).split())[:_MESSAGE]
        return Failure(
            f"status_{status}",
            f"status {status}{': ' if said else ''}{said}",
            final=400 <= status < 500 and status not in (408, 409, 425, 429),
            retry_after=_retry_after(response.headers.get("Retry-After", "")),
        )

    def _clean(self, text: str) -> str:
        """A server's words without our key, should it repeat it."""
        return text.replace(self._secret, "***") if self._secret else text

    async def _examine(self, url: str) -> ServerFacts:
        """What a server can do, where that is enough.

        Raises:
            EngineError: it is not.
            Unreachable: it does not answer now.
        """
        facts = await look(self._client, url, self._model)
        self._check_facts(facts)
        if not self._retokenize:
            expected = self._tokenizer.encode_response(self._sample_text)[:-1]
            if not await check_tokenizer(self._client, facts, self._sample_text, expected):
                self._counters["unchecked_tokenizers"] += 1
        return facts

    def _check_facts(self, facts: ServerFacts) -> None:
        if not (facts.token_ids or self._retokenize):
            raise EngineError(
                f"{facts.url} does not give the token ids that it samples. vLLM does from 0.10.2 on, SGLang in the "
                "releases that know return_token_ids, llama.cpp's server in those that know return_tokens: use one of "
                "these, or set engine.retokenize = true to have the learner's tokenizer make tokens of its text"
            )
        if self._updater is not None and not facts.started:
            raise EngineError(
                f"{facts.url}/metrics does not tell process_start_time_seconds, so a restart with old weights could "
                "pass unseen; run vLLM with --api-server-count 1 and without PROMETHEUS_MULTIPROC_DIR"
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
