"""Requests and replies of completion servers, as pure functions.

Guarantees: a request says every sampling setting out loud, because servers take what is left out from the model's
generation_config.json; log-probs are asked for only when the request wants them; what `read_reply` returns is
well-formed, and whatever a server may send, it raises `ReplyError` and nothing else.

What is known of the servers, from their own sources and documentation:

* vLLM (`/v1/completions`): prompts as token ids; `return_token_ids` (0.10.2 on) gives each choice `token_ids`, the stop
  token included, and `prompt_token_ids`; `n` samples have the seeds seed, seed + 1, ...; a log-prob of -inf is sent as
  -9999. Log-probs are those before temperature unless it runs with `--logprobs-mode processed_logprobs`.
* SGLang (`/v1/completions`): the same fields in releases that know `return_token_ids` (from the middle of 2026 on). Its
  `n` samples share one seed, so each is a request of its own.
* llama.cpp (`/completion`, the native route): `return_tokens` gives `tokens`, `stop_type` says why it ended, on the
  model's own stop tokens alone. Its log-probs need not be as many as its tokens, so they are not used.
* Anything else: OpenAI's own fields, and text, which only the learner's tokenizer can turn into tokens.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from driftproof.engines.http import ReplyError
from driftproof.types import FinishReason, Request, Response

_SEEDS = 2**31
"""Seeds are cut to 31 bits, which every server takes."""
_ABOVE_ZERO = 1e-3
"""Largest log-prob that counts as 0, lifted by rounding."""
_MINUS_INFINITY = -9999.0
"""vLLM's number for a log-prob of -inf."""


class Dialect(StrEnum):
    """How a server wants to be asked."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llama.cpp"
    OPENAI = "openai"

    @property
    def route(self) -> str:
        return "/completion" if self is Dialect.LLAMACPP else "/v1/completions"

    @property
    def several(self) -> bool:
        """Whether one request may ask for several samples, each with a seed of its own."""
        return self is Dialect.VLLM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One HTTP request for some samples of a `Request`."""

    request: Request
    samples: int
    offset: int
    """Added to the seed: samples drawn for this request before, good or not."""
    max_tokens: int
    prompt_text: str | None = None
    """Text to send where responses are re-tokenized; None sends token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Content of a reply: at most as many responses as were asked for."""

    responses: tuple[Response, ...]
    problems: tuple[str, ...]
    """Why the other choices cannot be used, each with its field."""


def build_body(dialect: Dialect, call: Call, model: str) -> dict[str, Any]:
    """The JSON of a request."""
    sampling = call.request.sampling
    prompt = call.request.prompt_tokens.tolist() if call.prompt_text is None else call.prompt_text
    seed = (sampling.seed + call.offset) % _SEEDS
    if dialect is Dialect.LLAMACPP:
        return {
            "prompt": prompt,
            "n_predict": call.max_tokens,
            # In this order, and no other sampler.
            "samplers": ["temperature", "top_k", "top_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": seed,
            "return_tokens": call.prompt_text is None,
            "stream": False,
        }
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "n": call.samples if dialect.several else 1,
        "max_tokens": call.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stream": False,
    }
    if call.request.want_logprobs:
        body["logprobs"] = 0
    if dialect is not Dialect.OPENAI:
        body |= {
            # vLLM and SGLang both know -1 as off; SGLang refuses 0.
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(sampling.stop_ids),
            "return_token_ids": call.prompt_text is None,
        }
    return body


def read_reply(
    dialect: Dialect, content: bytes, call: Call, *, vocabulary: int, encode: Callable[[str], list[int]] | None = None
) -> Reply:
    """Parse and check the reply to a call; token ids lie below `vocabulary`. ReplyError: nothing of it can be used.

    With `encode`, which gives the token ids of a text, the end-of-sequence token last, responses are re-tokenized.
    """
    choices = _choices(dialect, read_object(content))
    if len(choices) > call.samples:
        raise ReplyError(f"choices: {len(choices)} samples where {call.samples} were asked for")
    responses, problems = [], []
    for index, choice in enumerate(choices):
        try:
            responses.append(_response(choice, call, vocabulary, encode))
        except ReplyError as error:
            problems.append(f"choices[{index}].{error}")
    if not responses:
        raise ReplyError(problems[0] if problems else "choices: none")
    return Reply(responses=tuple(responses), problems=tuple(problems))


def read_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a body; ReplyError where it is something else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ReplyError(f"body: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ReplyError(f"body: {_short(value)} where a JSON object belongs")
    return value


def _choices(dialect: Dialect, reply: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a reply, all with the names of `/v1/completions`."""
    if dialect is Dialect.LLAMACPP:
        if reply.get("truncated") is True:
            raise ReplyError("truncated: true; the prompt did not fit into the server's context (raise --ctx-size)")
        reason = {"eos": "stop", "limit": "length"}.get(str(reply.get("stop_type")), reply.get("stop_type"))
        return [{"token_ids": reply.get("tokens"), "text": reply.get("content"), "finish_reason": reason}]
    choices = reply.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ReplyError(f"choices: {_short(choices)} where a list of objects belongs")
    return choices


def _response(
    choice: dict[str, Any], call: Call, vocabulary: int, encode: Callable[[str], list[int]] | None
) -> Response:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise ReplyError(f"finish_reason: {_short(reason)}; known are 'stop' and 'length'")
    finish = FinishReason(reason)
    if encode is not None:
        return _retokenized(choice.get("text"), finish, call, encode)
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and echoed != call.request.prompt_tokens.tolist():
        raise ReplyError("prompt_token_ids: not those of our prompt; the server must not add or cut tokens")
    tokens = _tokens(choice.get("token_ids"), finish, call, vocabulary)
    logprobs = None
    if call.request.want_logprobs:
        logprobs = np.array(_logprobs(choice.get("logprobs"), len(tokens)), dtype=np.float32)
    return Response(tokens=np.array(tokens, dtype=np.int32), finish_reason=finish, behavior_logprobs=logprobs)


def _tokens(value: Any, finish: FinishReason, call: Call, vocabulary: int) -> list[int]:
    if not isinstance(value, list):
        raise ReplyError(f"token_ids: {_short(value)} where a list belongs")
    # `type`, not `isinstance`: true and false are no token ids.
    wrong = [token for token in value if type(token) is not int or not 0 <= token < vocabulary]
    if wrong:
        raise ReplyError(f"token_ids: {_short(wrong[0])} is not in the vocabulary of {vocabulary}")
    if not 0 < len(value) <= call.max_tokens:
        raise ReplyError(f"token_ids: {len(value)} tokens where 1 to {call.max_tokens} were asked for")
    stops = call.request.sampling.stop_ids
    if finish is FinishReason.STOP and stops and value[-1] not in stops:
        raise ReplyError(
            f"token_ids: finish_reason is 'stop', but the last token, {value[-1]}, is none of the stop tokens {stops}"
        )
    return value


def _logprobs(value: Any, length: int) -> list[float]:
    if not isinstance(value, dict):
        raise ReplyError(f"logprobs: {_short(value)} where an object with token_logprobs belongs")
    logprobs = value.get("token_logprobs")
    if not isinstance(logprobs, list):
        raise ReplyError(f"logprobs.token_logprobs: {_short(logprobs)} where a list belongs")
    if len(logprobs) != length:
        raise ReplyError(f"logprobs.token_logprobs: {len(logprobs)} log-probs for {length} tokens")
    for logprob in logprobs:
        if type(logprob) not in (int, float) or not _MINUS_INFINITY < logprob <= _ABOVE_ZERO:
            raise ReplyError(
                f"logprobs.token_logprobs: {_short(logprob)}; a log-prob is a finite number, at most 0 (vLLM sends "
                f"{_MINUS_INFINITY:g} for -inf)"
            )
    return [min(float(logprob), 0.0) for logprob in logprobs]


def _retokenized(value: Any, finish: FinishReason, call: Call, encode: Callable[[str], list[int]]) -> Response:
    """The response in the learner's tokens; one that is longer in them than was asked for is cut as if by the limit."""
    if not isinstance(value, str):
        raise ReplyError(f"text: {_short(value)} where text belongs")
    try:
        tokens = encode(value)
    except ValueError as error:
        raise ReplyError(f"text: {error}") from error
    if finish is FinishReason.LENGTH:
        tokens = tokens[:-1]
    if len(tokens) > call.max_tokens:
        tokens, finish = tokens[: call.max_tokens], FinishReason.LENGTH
    if not tokens:
        raise ReplyError("text: empty, though the length limit ended it")
    return Response(tokens=np.array(tokens, dtype=np.int32), finish_reason=finish, retokenized=True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
