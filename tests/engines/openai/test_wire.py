import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.engines.http import ReplyError
from driftproof.engines.openai.wire import Call, Dialect, build_body, read_reply
from driftproof.errors import EngineError
from driftproof.types import FinishReason

from .server import END, VOCABULARY, ByteCodec, ask


def call(samples: int = 2, *, offset: int = 0, prompt_text: str | None = None, **options: Any) -> Call:
    request = ask(3, samples=samples, **options)
    return Call(request=request, samples=samples, offset=offset, max_tokens=4, prompt_text=prompt_text)


def choice(**changes: Any) -> dict[str, Any]:
    return {
        "token_ids": [97, END],
        "prompt_token_ids": [5, 6, 3],
        "finish_reason": "stop",
        "text": "a",
        "logprobs": {"token_logprobs": [-0.5, 1e-6]},
    } | changes


def read(*choices: Any, dialect: Dialect = Dialect.VLLM, **options: Any) -> Any:
    content = json.dumps({"choices": choices}).encode()
    return read_reply(dialect, content, call(**options), vocabulary=VOCABULARY)


@pytest.mark.parametrize("dialect", Dialect)
def test_every_dialect_says_all_settings_and_asks_for_log_probs_only_when_wanted(dialect: Dialect):
    plain = build_body(dialect, call(top_p=0.5, top_k=3), "tiny")
    assert plain["prompt"] == [5, 6, 3]
    assert (plain["temperature"], plain["top_p"], plain["seed"]) == (1.0, 0.5, 300)
    assert 4 in (plain.get("max_tokens"), plain.get("n_predict"))
    assert ("top_k" in plain) == (dialect is not Dialect.OPENAI)
    assert not {"logprobs", "n_probs", "prompt_logprobs"} & plain.keys()
    wanted = build_body(dialect, call(want_logprobs=True), "tiny")
    assert wanted.get("logprobs") == (None if dialect is Dialect.LLAMACPP else 0)


def test_bodies_differ_where_the_servers_do():
    assert build_body(Dialect.VLLM, call(5), "tiny")["n"] == 5
    assert build_body(Dialect.SGLANG, call(5), "tiny")["n"] == 1
    assert build_body(Dialect.VLLM, call(), "tiny")["top_k"] == -1
    assert build_body(Dialect.LLAMACPP, call(), "tiny")["top_k"] == 0
    assert build_body(Dialect.LLAMACPP, call(), "tiny")["return_tokens"]
    text = build_body(Dialect.VLLM, call(prompt_text="1+1="), "tiny")
    assert (text["prompt"], text["return_token_ids"]) == ("1+1=", False)
    assert "return_token_ids" not in build_body(Dialect.OPENAI, call(), "tiny")


def test_seeds_fit_every_server():
    for offset in (0, 7):
        body = build_body(Dialect.VLLM, call(seed=2**63 - 1, offset=offset), "tiny")
        assert 0 <= body["seed"] < 2**31


def test_a_good_reply():
    reply = read(choice(), choice(finish_reason="length", token_ids=[98, 99]), want_logprobs=True)
    first, second = reply.responses
    assert reply.problems == ()
    assert (first.tokens.tolist(), first.finish_reason) == ([97, END], FinishReason.STOP)
    assert (second.tokens.tolist(), second.finish_reason) == ([98, 99], FinishReason.LENGTH)
    assert first.tokens.dtype == np.int32
    np.testing.assert_array_equal(first.behavior_logprobs, np.array([-0.5, 0.0], dtype=np.float32))
    assert read(choice()).responses[0].behavior_logprobs is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": None}, "token_ids: None where a list belongs"),
        ({"token_ids": [VOCABULARY, END]}, "token_ids: 256 is not in the vocabulary of 256"),
        ({"token_ids": [-1, END]}, "token_ids: -1 is not"),
        ({"token_ids": [True, END]}, "token_ids: True is not"),
        ({"token_ids": [97.0, END]}, "token_ids: 97.0 is not"),
        ({"token_ids": [None, END]}, "token_ids: None is not"),
        ({"token_ids": []}, "token_ids: 0 tokens where 1 to 4"),
        ({"token_ids": [97, 97, 97, 97, END]}, "token_ids: 5 tokens where 1 to 4"),
        ({"token_ids": [97, 98]}, r"the last token, 98, is none of the stop tokens \(0,\)"),
        ({"finish_reason": None}, "finish_reason: None; known are"),
        ({"finish_reason": "abort"}, "finish_reason: 'abort'"),
        ({"finish_reason": ["stop"]}, "finish_reason"),
        ({"prompt_token_ids": [1, 5, 6, 3]}, "prompt_token_ids: not those of our prompt"),
        ({"logprobs": None}, "logprobs: None where an object"),
        ({"logprobs": {}}, "token_logprobs: None where a list"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "1 log-probs for 2 tokens"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "token_logprobs: nan; a log-prob is a finite"),
        ({"logprobs": {"token_logprobs": [-1.0, None]}}, "token_logprobs: None; a log-prob"),
        ({"logprobs": {"token_logprobs": [-1.0, 0.5]}}, "token_logprobs: 0.5; a log-prob"),
        ({"logprobs": {"token_logprobs": [-1.0, False]}}, "token_logprobs: False; a log-prob"),
        ({"logprobs": {"token_logprobs": [-1.0, float("-inf")]}}, "token_logprobs: -inf; a log-prob"),
        ({"logprobs": {"token_logprobs": [-1.0, -9999.0]}}, "token_logprobs: -9999.0; a log-prob"),
        ({"logprobs": {"token_logprobs": [-1.0, 10**400]}}, "token_logprobs: 1000.*; a log-prob"),
    ],
)
def test_a_spoiled_choice_is_named_with_its_field_and_does_not_cost_the_others(changes: dict[str, Any], message: str):
    with pytest.raises(ReplyError, match=message):
        read(choice(**changes), want_logprobs=True)
    reply = read(choice(), choice(**changes), want_logprobs=True)
    assert len(reply.responses) == 1
    (problem,) = reply.problems
    assert problem.startswith("choices[1].")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body: not JSON"),
        (b'{"choices": [', "body: not JSON"),
        (b"\xff\xfe\x00", "body: not JSON"),
        (b"[" * 100_000, "body: not JSON"),
        (b"[]", "body: .* where a JSON object belongs"),
        (b"{}", "choices: None where a list of objects belongs"),
        (b'{"choices": [1]}', "choices: .* where a list of objects belongs"),
        (b'{"choices": []}', "choices: none"),
        (b'{"choices": [{}, {}, {}]}', "choices: 3 samples where 2 were asked for"),
    ],
)
def test_a_body_that_is_no_reply(content: bytes, message: str):
    with pytest.raises(ReplyError, match=message):
        read_reply(Dialect.VLLM, content, call(), vocabulary=VOCABULARY)


def test_llama_cpp_replies():
    def native(**fields: Any) -> Any:
        content = json.dumps({"tokens": [97, END], "stop_type": "eos", "content": "a"} | fields).encode()
        return read_reply(Dialect.LLAMACPP, content, call(1), vocabulary=VOCABULARY).responses[0]

    assert native().tokens.tolist() == [97, END]
    assert native(stop_type="limit", tokens=[97]).finish_reason is FinishReason.LENGTH
    for fields, message in (
        ({"stop_type": "word"}, "finish_reason: 'word'"),
        ({"stop_type": {}}, "finish_reason"),
        ({"tokens": []}, "0 tokens"),
        ({"truncated": True}, "--ctx-size"),
    ):
        with pytest.raises(ReplyError, match=message):
            native(**fields)


def test_text_is_cut_to_the_limit_in_the_learners_tokens():
    def text(value: Any, finish: str) -> Any:
        content = json.dumps({"choices": [{"text": value, "finish_reason": finish}]}).encode()
        encode = ByteCodec().encode_response
        return read_reply(Dialect.OPENAI, content, call(1), vocabulary=VOCABULARY, encode=encode).responses[0]

    assert text("ab", "stop").tokens.tolist() == [97, 98, END]
    assert text("ab", "length").tokens.tolist() == [97, 98]
    for finish in ("stop", "length"):
        cut = text("abcdefg", finish)
        assert (cut.tokens.tolist(), cut.finish_reason) == ([97, 98, 99, 100], FinishReason.LENGTH)
    for value, message in ((None, "where text belongs"), ("", "empty"), ("\ud800", "text: ")):
        with pytest.raises(ReplyError, match=message):
            text(value, "length")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("token_ids", "prompt_token_ids", "finish_reason", "text", "logprobs", "tokens", "content", "stop_type")
CHOICES = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)).map(lambda changes: choice(**changes))
REPLIES = JSON | st.fixed_dictionaries({"choices": JSON | st.lists(JSON | CHOICES, max_size=3)}) | CHOICES


@settings(deadline=None, max_examples=200)
@given(
    content=REPLIES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40),
    dialect=st.sampled_from(Dialect),
    want_logprobs=st.booleans(),
    retokenize=st.booleans(),
)
def test_no_reply_raises_anything_but_an_engine_error(
    content: bytes, dialect: Dialect, want_logprobs: bool, retokenize: bool
):
    encode = ByteCodec().encode_response if retokenize else None
    asked = call(want_logprobs=want_logprobs)
    try:
        reply = read_reply(dialect, content, asked, vocabulary=VOCABULARY, encode=encode)
    except EngineError:
        return
    assert 1 <= len(reply.responses) <= 2
    for response in reply.responses:
        assert 1 <= len(response.tokens) <= 4
        assert response.tokens.min() >= 0
        assert response.tokens.max() < VOCABULARY
        if want_logprobs and not retokenize:
            assert response.behavior_logprobs is not None
            assert np.isfinite(response.behavior_logprobs).all()
            assert response.behavior_logprobs.max() <= 0
            assert response.behavior_logprobs.shape == response.tokens.shape
