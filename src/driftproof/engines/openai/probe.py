"""Facts of a server, found out by asking it.

Guarantees: the questions are GETs, one tokenization, and completions of one token; the API key is in no message.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import httpx2
import numpy as np

from driftproof.engines.http import ReplyError, Unreachable, open_client, send, server_url
from driftproof.engines.openai.wire import Call, Dialect, build_body, read_object
from driftproof.engines.protocol import name_of
from driftproof.errors import EngineError
from driftproof.types import Prompt, Request, Sampling

_SECONDS = 60.0
"""Time limit of one question; a loaded server answers late."""
_OWNERS = {"vllm": Dialect.VLLM, "sglang": Dialect.SGLANG, "llamacpp": Dialect.LLAMACPP}
"""`owned_by` in /v1/models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """Facts that one server tells of itself or shows."""

    url: str
    dialect: Dialect
    models: tuple[str, ...]
    model: str
    """Name of the model that is asked: the chosen one of `models`, or the first."""
    version: str
    token_ids: bool
    """Gives the ids of the tokens it sampled."""
    logprobs: bool
    """Gives the log-prob of each token that it sampled."""
    tempered_logprobs: bool
    """Gives log-probs of the distribution after temperature."""
    max_length: int | None
    """Tokens of prompt and response together, where it tells."""
    started: str
    """When its process started, as /metrics says it; empty where it does not tell."""


def probe(url: str, *, model: str = "", api_key_variable: str = "") -> ServerFacts:
    """Ask the server at `url` what it can do; `model` is one of the names it serves, or its first.

    Unreachable: not now. EngineError: no completion server, not that model, or a key it does not take.
    """

    async def ask() -> ServerFacts:
        async with open_client(api_key_variable) as client:
            return await inspect_server(client, server_url(url), model)

    return asyncio.run(ask())


async def inspect_server(client: httpx2.AsyncClient, url: str, model: str = "") -> ServerFacts:
    """`probe` with an open client."""
    cards = await _model_cards(client, url)
    models = tuple(str(card.get("id")) for card in cards)
    if model and model not in models:
        raise EngineError(f"{url} does not serve model {model!r}; it serves {', '.join(models)}")
    card = next(card for card in cards if not model or card.get("id") == model)
    dialect = _OWNERS.get(str(card.get("owned_by")))
    name = model or models[0]
    # One that does not say what it is may still answer as vLLM does; else it is asked for what all know.
    tried = dialect or Dialect.VLLM
    first = await _first_choice(client, url, tried, name, temperature=1.0)
    if dialect is None and not first.get("token_ids"):
        tried = Dialect.OPENAI
        first = await _first_choice(client, url, tried, name, temperature=1.0)
    likeliest = _likeliest(first)
    _, props = await _ask(client, url, "/props") if tried is Dialect.LLAMACPP else (0, {})
    _, version = await _ask(client, url, "/version")
    hot = None if likeliest is None else _likeliest(await _first_choice(client, url, tried, name, temperature=8.0))
    return ServerFacts(
        url=url,
        dialect=tried,
        models=models,
        model=name,
        version=str(version.get("version") or props.get("build_info") or ""),
        token_ids=bool(first.get("token_ids")),
        logprobs=likeliest is not None,
        tempered_logprobs=None not in (likeliest, hot) and abs((likeliest or 0.0) - (hot or 0.0)) > 1e-3,
        max_length=_max_length(props.get("default_generation_settings"), card),
        started=await start_time(client, url),
    )


async def start_time(client: httpx2.AsyncClient, url: str) -> str:
    """When the server's process started, or empty where it does not tell."""
    answer = await send(client, "GET", f"{url}/metrics", seconds=_SECONDS)
    found = re.search(r"^process_start_time_seconds(?:\{[^}]*\})? (\S+)$", answer.text, re.MULTILINE)
    return found[1] if answer.status == 200 and found else ""


def check_usable(facts: ServerFacts, *, retokenize: bool, updated: bool) -> None:
    """Refuse a server that cannot do its part; `updated`: it is to be given new weights."""
    if not (facts.token_ids or retokenize):
        raise EngineError(
            f"{facts.url} does not give the token ids that it samples. vLLM does from 0.10.2 on, SGLang in the "
            "releases that know return_token_ids, llama.cpp's server in those that know return_tokens: use one of "
            "these, or set engine.retokenize = true to have the learner's tokenizer make tokens of its text"
        )
    if updated and not facts.started:
        raise EngineError(
            f"{facts.url}/metrics does not tell process_start_time_seconds, so a restart with old weights could "
            "pass unseen; run vLLM with --api-server-count 1 and without PROMETHEUS_MULTIPROC_DIR"
        )


def check_logprobs(facts: ServerFacts, request: Request, *, retokenize: bool) -> None:
    """Refuse a request for log-probs that a server does not give, or not at the temperature that it samples at."""
    if not facts.logprobs or retokenize:
        raise EngineError(
            f"{name_of(request)}: {facts.url} gives no log-probs of its tokens; choose an objective that needs none, "
            "such as asympo, spo or naive"
        )
    if request.sampling.temperature != 1 and not facts.tempered_logprobs:
        raise EngineError(
            f"{name_of(request)}: {facts.url} gives log-probs of temperature 1, not of the "
            f"{request.sampling.temperature} it samples at; start vLLM with --logprobs-mode processed_logprobs, or set "
            "sampling.temperature = 1"
        )


async def check_tokenizer(client: httpx2.AsyncClient, facts: ServerFacts, text: str, expected: Sequence[int]) -> bool:
    """Whether the server tokenizes `text` at all; EngineError where it gets other ids than the `expected`."""
    body = {"model": facts.model, "prompt": text, "add_special_tokens": False}
    if facts.dialect is Dialect.LLAMACPP:
        body = {"content": text, "add_special": False}
    _, reply = await _ask(client, facts.url, "/tokenize", body)
    tokens = reply.get("tokens")
    if not isinstance(tokens, list):
        return False
    if tokens != list(expected):
        # NaN, which fills up the shorter, differs from everything.
        place = next(i for i, (a, b) in enumerate(zip_longest(tokens, expected, fillvalue=math.nan)) if a != b)
        there, here = (repr(ids[place])[:20] if place < len(ids) else "the end" for ids in (tokens, expected))
        raise EngineError(
            f"{facts.url} has another tokenizer than the learner: {text[:60]!r} differs first at token {place}, "
            f"{there} there and {here} here ({len(tokens)} and {len(expected)} tokens); serve the learner's model, or "
            "set engine.retokenize = true for an objective that needs no log-probs"
        )
    return True


async def _model_cards(client: httpx2.AsyncClient, url: str) -> list[dict[str, Any]]:
    status, reply = await _ask(client, url, "/v1/models", needed=True)
    cards = reply.get("data")
    if not isinstance(cards, list) or not cards or not all(isinstance(card, dict) for card in cards):
        raise EngineError(
            f"{url}/v1/models lists no models (status {status}); give the address of an "
            "OpenAI-compatible completion server, like http://127.0.0.1:8000"
        )
    return cards


async def _first_choice(
    client: httpx2.AsyncClient, url: str, dialect: Dialect, model: str, *, temperature: float
) -> dict[str, Any]:
    """One sampled token; {} where the server refuses to be asked so."""
    request = Request(
        key=0,
        prompt=Prompt(index=0, text="", answer=""),
        prompt_tokens=np.array([1], dtype=np.int32),
        samples=1,
        sampling=Sampling(max_tokens=1, temperature=temperature),
    )
    call = Call(request=request, samples=1, offset=0, max_tokens=1)
    body = build_body(dialect, call, model)
    if dialect is not Dialect.LLAMACPP:
        body["logprobs"] = 1
    # Needed, too: some list their models to whoever asks.
    _, reply = await _ask(client, url, dialect.route, body, needed=True)
    if dialect is Dialect.LLAMACPP:
        return {"token_ids": reply.get("tokens")}
    choices = reply.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _likeliest(choice: dict[str, Any]) -> float | None:
    """The largest log-prob of the first token, where there is one."""
    try:
        return max(float(value) for value in choice["logprobs"]["top_logprobs"][0].values())
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError):
        return None


def _max_length(settings: Any, card: dict[str, Any]) -> int | None:
    """The context, which llama.cpp tells in its settings and the others in the card of the model."""
    length = settings.get("n_ctx") if isinstance(settings, dict) else card.get("max_model_len")
    return length if type(length) is int and length > 0 else None


async def _ask(
    client: httpx2.AsyncClient, url: str, route: str, body: dict[str, Any] | None = None, *, needed: bool = False
) -> tuple[int, dict[str, Any]]:
    """Status and JSON object of a route, {} where there is none; `needed`: it must not refuse us."""
    answer = await send(client, "GET" if body is None else "POST", url + route, body, seconds=_SECONDS)
    if needed and answer.status in (401, 403):
        raise EngineError(
            f"{url} refuses us (status {answer.status}); name the environment variable that holds its API key: "
            "--engine.api_key_variable NAME"
        )
    if answer.status >= 500 or answer.status == 429:
        raise Unreachable(f"{url}{route}: status {answer.status}", kind="unwell")
    try:
        return answer.status, read_object(answer.content) if answer.status == 200 else {}
    except ReplyError:
        return answer.status, {}
