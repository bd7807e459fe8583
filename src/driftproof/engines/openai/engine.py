"""The engine `openai`: completion servers over HTTP, several at once, in whatever weather.

Guarantees: every submitted request comes out of `collect` exactly once; a refused reply is counted and asked for again;
a server that dies is ejected and readmitted; no server with an updater gets work before it has the newest weights.
"""

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from driftproof.engines.http import open_client, server_url
from driftproof.engines.openai.pool import RetryPolicy, ServerPool, Updater
from driftproof.engines.openai.probe import ServerFacts, check_logprobs, check_tokenizer, check_usable, inspect_server
from driftproof.engines.openai.requests import Requests
from driftproof.engines.protocol import Capabilities, Completed, check_request, name_of
from driftproof.errors import EngineError
from driftproof.tasks.codec import Codec
from driftproof.types import Request

_POLL_SECONDS = 0.02
"""Time that `collect` waits for an answer."""


class OpenAIEngine:
    """One or more servers behind the `Engine` protocol; the HTTP runs in a thread of its own."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        vocabulary: int,
        tokenizer: Codec,
        sample_text: str,
        model: str = "",
        slots: int = 128,
        policy: RetryPolicy | None = None,
        retokenize: bool = False,
        updater: Updater | None = None,
        api_key_variable: str = "",
    ) -> None:
        """Ask every server what it can do. One that does not answer is ejected, as long as another does; EngineError
        where none answers, or one cannot be used.

        Every server has a URL of its own: behind a load balancer no restart could be noticed. `vocabulary` and
        `tokenizer` are the learner's; the servers must agree with it on `sample_text`, a prompt of the task. With
        `retokenize` text is sent and taken, and tokens are made of it by `tokenizer`. The rest is as in `[engine]`.
        """
        if not urls:
            raise EngineError("the engine openai needs the address of a server: --engine.url http://127.0.0.1:8000")
        self._tokenizer = tokenizer
        self._sample_text = sample_text
        self._model = model
        self._retokenize = retokenize
        self._counters: Counter[str] = Counter()
        self._under_way: dict[int, int] = {}
        """Samples of the requests under way, by their keys."""
        self._done: queue.SimpleQueue[Completed | BaseException] = queue.SimpleQueue()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._http = open_client(api_key_variable)
        self._pool = ServerPool(
            list(dict.fromkeys(map(server_url, urls))),
            slots=slots,
            examine=self._examine,
            policy=policy or RetryPolicy(),
            updater=updater,
            counters=self._counters,
            spawn=self._spawn,
        )
        self._requests = Requests(
            pool=self._pool, http=self._http, vocabulary=vocabulary, retokenizer=tokenizer if retokenize else None
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)
        self._thread.start()
        try:
            self._run(self._pool.open())
        except BaseException:
            self.close()
            raise

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            logprobs=not self._retokenize and all(facts.logprobs for facts in self.facts),
            follows_weights=self._pool.updater is not None,
        )

    @property
    def facts(self) -> tuple[ServerFacts, ...]:
        """Facts of the servers that have answered so far."""
        return self._pool.facts

    @property
    def counters(self) -> dict[str, float]:
        """Counts since the start: `calls`, `retries`, `missing_samples`, `ejected`, `readmitted`, `updates`,
        `errors.KIND` for every kind of error that was met, and those of the updater."""
        return {**self._counters, **(self._pool.updater.counters if self._pool.updater else {})}

    @property
    def room(self) -> int:
        return max(0, self._pool.slots - sum(self._under_way.values()))

    def submit(self, request: Request) -> None:
        """Hand a request to the servers, each of which could answer it."""
        if self._closed:
            raise EngineError(f"{name_of(request)}: the engine is closed")
        check_request(
            request,
            under_way=self._under_way,
            vocabulary=self._requests.vocabulary,
            max_length=min((facts.max_length for facts in self.facts if facts.max_length), default=None),
        )
        if request.want_logprobs:
            for facts in self.facts:
                check_logprobs(facts, request, retokenize=self._retokenize)
        self._under_way[request.key] = request.samples
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._answer(request)))

    def collect(self) -> list[Completed]:
        """Requests completed since the last call, or within a moment; raises whatever unexpected ended the work of the
        other thread: an error in the updater, or in this engine."""
        completed: list[Completed] = []
        with suppress(queue.Empty):
            while self._under_way:
                item = self._done.get(timeout=0 if completed else _POLL_SECONDS)
                if isinstance(item, BaseException):
                    raise item
                del self._under_way[item.request.key]
                completed.append(item)
        return completed

    def load(self, snapshot: Path) -> None:
        """Bring the weights of a snapshot to every live server, at once; one that does not take them is ejected, and
        gets them before it is used again."""
        if self._pool.updater is None:
            return
        if self._closed:
            raise EngineError(f"{snapshot} cannot be loaded: the engine is closed")
        if not snapshot.is_dir():
            raise FileNotFoundError(f"snapshot {snapshot} does not exist")
        self._run(self._pool.load(snapshot))

    def close(self) -> None:
        """Drop all work; may be called more than once."""
        if self._closed:
            return
        self._closed = True
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._under_way.clear()

    # Everything below runs in the engine's thread, and so needs no locks for what it shares.

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

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
        await self._http.aclose()

    async def _examine(self, url: str) -> ServerFacts:
        """Facts of a server that can be used; EngineError where it cannot, Unreachable where it does not answer now."""
        facts = await inspect_server(self._http, url, self._model)
        check_usable(facts, retokenize=self._retokenize, updated=self._pool.updater is not None)
        if not self._retokenize:
            expected = self._tokenizer.encode_response(self._sample_text)[:-1]
            if not await check_tokenizer(self._http, facts, self._sample_text, expected):
                self._counters["unchecked_tokenizers"] += 1
        return facts

    async def _answer(self, request: Request) -> None:
        self._done.put(await self._requests.answer(request))
