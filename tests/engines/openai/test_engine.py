import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.engines.openai.engine import OpenAIEngine
from driftproof.engines.openai.pool import RetryPolicy
from driftproof.engines.protocol import Capabilities, Completed, generate
from driftproof.errors import EngineError
from driftproof.types import FinishReason, Response

from .server import BASE, END, FAULTS, VOCABULARY, ByteCodec, HttpUpdater, TableServer, answer, ask, serving

SLOTS = 64
HASTY = RetryPolicy(
    timeout_seconds=300.0,
    attempts=4,
    backoff_seconds=0.01,
    longest_pause_seconds=0.05,
    eject_after=3,
    outage_seconds=300.0,
)


@contextlib.contextmanager
def engine_of(
    *servers: TableServer, policy: RetryPolicy = HASTY, slots: int = SLOTS, **options: Any
) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine(
        [server.url for server in servers],
        vocabulary=VOCABULARY,
        tokenizer=ByteCodec(),
        sample_text="47+85=",
        slots=slots,
        policy=policy,
        **options,
    )
    try:
        yield engine
    finally:
        engine.close()


def tokens_of(responses: Sequence[Response]) -> list[list[int]]:
    return [response.tokens.tolist() for response in responses]


def finish(engine: OpenAIEngine, count: int, seconds: float = 300.0) -> list[Completed]:
    """So many completed requests, and no more than these."""
    completed: list[Completed] = []
    until = time.monotonic() + seconds
    while len(completed) < count:
        assert time.monotonic() < until, f"stalled with {len(completed)} of {count}: {engine.counters}"
        completed += engine.collect()
    assert engine.collect() == []
    return completed


def test_answers_are_the_servers_tokens_and_nothing_unasked_is_requested():
    server = TableServer()
    with serving(server), engine_of(server) as engine:
        assert engine.capabilities == Capabilities(logprobs=True, follows_weights=False)
        (responses,) = generate(engine, [ask(3, top_p=0.9, top_k=7, temperature=0.7)])
    expected = [answer(BASE, [5, 6, 3], 300 + j, 8) for j in range(4)]
    assert tokens_of(responses) == [tokens for tokens, _, _ in expected]
    assert [response.finish_reason for response in responses] == [FinishReason(finish) for _, _, finish in expected]
    assert all(r.behavior_logprobs is None and r.tokens.dtype == np.int32 for r in responses)
    (body,) = server.requests
    assert "logprobs" not in body
    wanted = {"prompt": [5, 6, 3], "n": 4, "seed": 300, "max_tokens": 8, "stop_token_ids": [END], "model": "tiny"}
    wanted |= {"temperature": 0.7, "top_p": 0.9, "top_k": 7, "min_p": 0.0, "repetition_penalty": 1.0}
    assert wanted.items() <= body.items()


def test_log_probs_are_asked_for_when_wanted_and_only_then():
    server = TableServer()
    with serving(server), engine_of(server) as engine:
        generate(engine, [ask(1), ask(2)])
        assert not [body for body in server.requests if "logprobs" in body]
        (responses,) = generate(engine, [ask(3, want_logprobs=True)])
    assert server.requests[-1]["logprobs"] == 0
    for j, response in enumerate(responses):
        assert response.behavior_logprobs is not None
        np.testing.assert_allclose(response.behavior_logprobs, answer(BASE, [5, 6, 3], 300 + j, 8)[1], rtol=1e-6)


def test_refuses_log_probs_of_another_temperature_than_it_samples_at():
    raw, processed = TableServer(), TableServer(tempered=True)
    with serving(raw, processed):
        with (
            engine_of(raw) as engine,
            pytest.raises(EngineError, match=r"temperature 1, not of the 0\.6.*--logprobs-mode processed_logprobs"),
        ):
            engine.submit(ask(1, want_logprobs=True, temperature=0.6))
        with engine_of(processed) as engine:
            generate(engine, [ask(1, want_logprobs=True, temperature=0.6)])


def test_requests_that_can_never_be_answered_are_refused_at_once():
    server = TableServer(max_model_len=8, log_probs=False)
    with serving(server), engine_of(server) as engine:
        for request, message in (
            (ask(1, [5] * 8), r"request 1 .*8 tokens.*context of 8.*--max-model-len"),
            (ask(1, [VOCABULARY]), "vocabulary from 0 to 255"),
            (ask(1, samples=0), "at least 1 response"),
            (ask(1, want_logprobs=True), r"gives no log-probs.*asympo"),
        ):
            with pytest.raises(EngineError, match=message):
                engine.submit(request)
        engine.submit(ask(1, [5] * 6))
        with pytest.raises(EngineError, match="unique"):
            engine.submit(ask(1))
        assert engine.room == SLOTS - 4
        finish(engine, 1)
        assert engine.room == SLOTS
        # The context leaves two tokens.
        assert server.requests[-1]["max_tokens"] == 2
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.submit(ask(2))
        assert engine.collect() == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "status_429"),
        ("500", "status_500"),
        ("503", "status_503"),
        ("cut", "disconnected"),
        ("close", "disconnected"),
        ("late", "timeout"),
        *((name, "invalid_reply") for name in FAULTS if name not in ("429", "500", "503", "cut", "close", "fewer")),
    ],
)
def test_one_fault_is_counted_and_costs_nothing(fault: str, kind: str):
    server = TableServer(faults=deque([fault]))
    hasty = RetryPolicy(timeout_seconds=4.0, backoff_seconds=0.01) if fault == "late" else HASTY
    with serving(server), engine_of(server, policy=hasty) as engine:
        (responses,) = generate(engine, [ask(3, want_logprobs=True)])
        counters = engine.counters
    assert len(responses) == 4
    assert server.served_faults == {fault: 1}
    assert counters[f"errors.{kind}"] == counters["retries"] == 1
    assert counters["calls"] == 2
    assert "ejected" not in counters
    # Another seed: what gave a bad reply once would give it again.
    assert server.requests[0]["seed"] + 4 <= server.requests[1]["seed"]


@pytest.mark.parametrize(("fault", "bad"), [("fewer", 0), ("one", 1)])
def test_missing_and_spoiled_samples_alone_are_asked_for_again(fault: str, bad: int):
    server = TableServer(faults=deque([fault]))
    with serving(server), engine_of(server) as engine:
        (responses,) = generate(engine, [ask(3, samples=6)])
        counters = engine.counters
    assert [body["n"] for body in server.requests] == [6, 1]
    # The seeds 300 to 305, but for the one that gave nothing, and a fresh one.
    first = 300 + bad
    seeds = [*range(first, first + 5), 306]
    assert tokens_of(responses) == [answer(BASE, [5, 6, 3], seed, 8)[0] for seed in seeds]
    assert (counters["missing_samples"], counters["errors.invalid_reply"], counters["retries"]) == (1, bad, 1)


def test_a_request_that_keeps_failing_ends_with_an_error_and_the_others_do_not():
    server = TableServer(faults=deque(["foreign"] * HASTY.attempts))
    with serving(server), engine_of(server) as engine:
        engine.submit(ask(1))
        (failed,) = finish(engine, 1)
        assert failed.request.key == 1
        assert failed.responses == ()
        assert server.url in failed.error
        assert "after 4 failed attempts" in failed.error
        assert "choices[0].token_ids: 256 is not in the vocabulary of 256" in failed.error
        # Three in a row eject it; it is asked, and readmitted for the fourth.
        assert engine.counters["ejected"] == engine.counters["readmitted"] == 1
        assert len(generate(engine, [ask(1)])[0]) == 4


def test_a_request_that_the_server_does_not_understand_is_not_repeated():
    server = TableServer(owner="llamacpp")
    with serving(server), engine_of(server) as engine:
        server.owner = "vllm"  # its native route is gone: 404
        engine.submit(ask(1))
        assert "after 1 failed attempts" in finish(engine, 1)[0].error
        assert 1 <= engine.counters["errors.status_404"] <= 4
        assert "ejected" not in engine.counters


@pytest.mark.parametrize("retry_as_date", [False, True])
def test_retry_after_is_honoured(retry_as_date: bool):
    # A date has whole seconds: up to one is lost.
    server = TableServer(faults=deque(["429"]), retry_seconds=1 + retry_as_date, retry_as_date=retry_as_date)
    with serving(server), engine_of(server) as engine:
        generate(engine, [ask(1)])
        assert engine.counters["errors.status_429"] == 1
    refused, answered = server.times
    assert answered - refused >= 0.9


def test_load_is_spread_and_bounded():
    servers = TableServer(reply_seconds=0.02), TableServer(reply_seconds=0.02)
    with serving(*servers), engine_of(*servers, slots=8) as engine:
        assert engine.room == 16
        for key in range(12):
            engine.submit(ask(key))
        assert engine.room == 0
        finish(engine, 12)
    for server in servers:
        assert server.most_under_way <= 8
        assert 4 <= len(server.requests) <= 8


def test_a_dead_server_is_ejected_and_readmitted():
    servers = TableServer(), TableServer()
    with serving(*servers), engine_of(*servers) as engine:
        servers[0].stop()
        for key in range(8):
            engine.submit(ask(key))
        assert all(not item.error for item in finish(engine, 8))
        assert engine.counters["ejected"] == 1
        assert engine.counters["errors.refused"] >= 1
        assert engine.room == SLOTS
        servers[0].start()
        wait_for(lambda: engine.room == 2 * SLOTS)
        assert engine.counters["readmitted"] == 1
        assert engine.counters["errors.readmit"] >= 1
        servers[1].stop()
        generate(engine, [ask(1)])


def test_requests_wait_for_a_server_to_come_back():
    server = TableServer()
    with serving(server), engine_of(server) as engine:
        server.stop()
        engine.submit(ask(1))
        wait_for(lambda: engine.counters.get("ejected") == 1)
        assert engine.collect() == []
        assert engine.room == 0
        server.start()
        assert not finish(engine, 1)[0].error


def test_an_outage_that_lasts_ends_them():
    server = TableServer()
    with serving(server), engine_of(server, policy=RetryPolicy(backoff_seconds=0.01, outage_seconds=0.3)) as engine:
        server.stop()
        for key in (2, 3):
            engine.submit(ask(key))
        errors = [item.error for item in finish(engine, 2)]
        assert all(re.match(rf"no server for \d+ s: {server.url}.*Connect", error) for error in errors)
        assert engine.counters["failed_requests"] == engine.counters["errors.no_server"] == 2


def test_a_server_that_does_not_answer_at_the_start_is_taken_when_it_does():
    servers = TableServer(), TableServer()
    with serving(*servers):
        servers[1].stop()
        with engine_of(*servers) as engine:
            assert engine.room == SLOTS
            assert engine.counters["ejected"] == 1
            servers[1].start()
            wait_for(lambda: engine.room == 2 * SLOTS)
        servers[0].stop()
        servers[1].stop()
        with (
            pytest.raises(EngineError, match=rf"no server answers: {servers[0].url}.*start it, or correct"),
            engine_of(*servers),
        ):
            pass


def snapshots(tmp_path: Path, *names: str) -> list[Path]:
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.mkdir(exist_ok=True)
    return paths


def test_new_weights_go_to_every_server_while_responses_are_under_way(tmp_path: Path):
    one, two = snapshots(tmp_path, "one", "two")
    servers = TableServer(), TableServer()
    with serving(*servers), engine_of(*servers, updater=HttpUpdater()) as engine:
        assert engine.capabilities.follows_weights
        servers[1].weights = "somebody else's"
        engine.load(one)
        for server in servers:
            server.gate.clear()
        for key in range(4):
            engine.submit(ask(key))
        wait_for(lambda: sum(len(server.requests) for server in servers) == 4)
        engine.load(two)
        assert engine.collect() == []
        for server in servers:
            server.gate.set()
        assert all(not item.error for item in finish(engine, 4))
        generate(engine, [ask(key) for key in range(4)])
        assert [server.updates for server in servers] == [["one", "two"], ["one", "two"]]
        assert [server.weights_used[-1] for server in servers] == ["two", "two"]
        assert engine.counters["updates"] == 4
        with pytest.raises(FileNotFoundError, match="three"):
            engine.load(tmp_path / "three")


def test_without_an_updater_weights_are_not_followed(tmp_path: Path):
    server = TableServer()
    with serving(server), engine_of(server) as engine:
        assert not engine.capabilities.follows_weights
        engine.load(tmp_path / "nowhere")
        assert server.updates == []


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_server_that_restarts_with_old_weights_gets_the_new_ones_before_it_is_believed(tmp_path: Path, pause: float):
    (one,) = snapshots(tmp_path, "one")
    server = TableServer()
    with serving(server), engine_of(server, updater=HttpUpdater()) as engine:
        engine.load(one)
        generate(engine, [ask(1)])
        server.stop()
        time.sleep(pause)
        server.start()
        assert server.weights == BASE
        answers = generate(engine, [ask(key) for key in range(2, 8)])
        for key, responses in enumerate(answers, start=2):
            prompt = [5, 6, key]
            possible = [answer("one", prompt, 100 * key + j, 8)[0] for j in range(4 * HASTY.attempts)]
            assert all(tokens in possible for tokens in tokens_of(responses))
        assert server.updates == ["one", "one"]
        assert engine.counters.get("errors.restarted", 0) + engine.counters.get("errors.disconnected", 0) > 0
        assert engine.counters["readmitted"] == 1


def test_a_server_that_does_not_take_the_weights_gets_no_work_until_it_does(tmp_path: Path):
    one, two = snapshots(tmp_path, "one", "two")
    servers = TableServer(), TableServer()
    with serving(*servers), engine_of(*servers, updater=HttpUpdater()) as engine:
        engine.load(one)
        servers[0].refuses_updates = True
        engine.load(two)
        assert engine.counters["errors.update"] == 1
        assert engine.room == SLOTS
        generate(engine, [ask(key) for key in range(6)])
        assert servers[0].requests == []
        servers[0].refuses_updates = False
        wait_for(lambda: engine.room == 2 * SLOTS)
        generate(engine, [ask(key) for key in range(6)])
        assert set(servers[0].weights_used) == {"two"}


def test_an_error_in_the_updater_reaches_the_worker(tmp_path: Path):
    class Broken:
        counters: Mapping[str, float] = MappingProxyType({})

        async def update(self, server_url: str, snapshot: Path) -> None:
            raise ZeroDivisionError("a mistake of ours")

    (one,) = snapshots(tmp_path, "one")
    server = TableServer()
    with serving(server), engine_of(server, updater=Broken()) as engine:
        with pytest.raises(ZeroDivisionError):
            engine.load(one)
        server.restart()
        engine.submit(ask(1))
        with pytest.raises(ZeroDivisionError):
            finish(engine, 1)


def test_text_of_a_stranger_becomes_tokens_of_the_learner():
    server = TableServer(owner="stranger", token_ids=False, log_probs=False, tokenizer_shift=1)
    with serving(server), engine_of(server, retokenize=True) as engine:
        assert engine.capabilities == Capabilities(logprobs=False, follows_weights=False)
        (responses,) = generate(engine, [ask(0, [*b"1+1="], seed=9)])
        with pytest.raises(EngineError, match="no log-probs"):
            engine.submit(ask(1, want_logprobs=True))
    assert sorted(body["seed"] for body in server.requests) == [9, 10, 11, 12]
    assert {body["prompt"] for body in server.requests} == {"1+1="}
    assert tokens_of(responses) == [answer(BASE, [*b"1+1="], 9 + j, 8)[0] for j in range(4)]
    assert all(response.retokenized for response in responses)


def test_llama_cpp_is_asked_by_its_native_route():
    server = TableServer(owner="llamacpp", max_model_len=32)
    with serving(server), engine_of(server) as engine:
        assert engine.capabilities == Capabilities(logprobs=False, follows_weights=False)
        (responses,) = generate(engine, [ask(2)])
        with pytest.raises(EngineError, match="context of 32"):
            engine.submit(ask(3, [5] * 32))
    assert tokens_of(responses) == [answer(BASE, [5, 6, 2], 200 + j, 8)[0] for j in range(4)]
    assert not any(response.retokenized for response in responses)


def test_servers_that_cannot_be_used_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    for server, options, message in (
        (TableServer(token_ids=False), {}, r"vLLM does from 0\.10\.2 on.*engine\.retokenize = true"),
        (TableServer(owner="stranger", token_ids=False), {}, r"does not give the token ids"),
        (TableServer(tokenizer_shift=1), {}, r"another tokenizer.*differs first at token 5, 62 there and 61 here"),
        (TableServer(tells_start=False), {"updater": HttpUpdater()}, r"process_start_time_seconds"),
        (TableServer(), {"model": "huge"}, r"does not serve model 'huge'; it serves tiny"),
        (TableServer(key="s3cret"), {}, r"status 401.*environment variable"),
        (TableServer(), {"api_key_variable": "NO_SUCH_KEY"}, r"NO_SUCH_KEY is to hold the API key, but is not set"),
    ):
        with serving(server), pytest.raises(EngineError, match=message), engine_of(server, **options):
            pass
    with pytest.raises(EngineError, match="user or password"):
        OpenAIEngine(["http://me:pw@host"], vocabulary=9, tokenizer=ByteCodec(), sample_text="1")
    with pytest.raises(EngineError, match="http://127"):
        OpenAIEngine(["localhost:8000"], vocabulary=9, tokenizer=ByteCodec(), sample_text="1")


def test_the_api_key_opens_the_door_and_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("DRIFTPROOF_TEST_KEY", "s3cret-k3y")
    server = TableServer(key="s3cret-k3y", faults=deque(["500"] * 9))
    caplog.set_level("DEBUG")
    with serving(server), engine_of(server, api_key_variable="DRIFTPROOF_TEST_KEY") as engine:
        engine.submit(ask(1))
        (failed,) = finish(engine, 1)
    assert "busy Bearer ***" in failed.error
    assert "s3cret" not in failed.error + caplog.text


@settings(max_examples=10, deadline=None)
@given(
    first=st.lists(st.sampled_from(FAULTS), max_size=10),
    second=st.lists(st.sampled_from(FAULTS), max_size=10),
    restarts=st.lists(st.integers(0, 1), max_size=2),
    requests=st.integers(1, 6),
)
def test_in_any_weather_every_request_comes_out_once_and_every_fault_is_counted(
    first: list[str], second: list[str], restarts: list[int], requests: int
):
    servers = TableServer(faults=deque(first)), TableServer(faults=deque(second))
    with serving(*servers), engine_of(*servers, updater=HttpUpdater()) as engine:
        for key in range(requests):
            engine.submit(ask(key, samples=3, want_logprobs=True))
        for index in restarts:
            servers[index].restart()
        completed = finish(engine, requests)
        counters = engine.counters
    assert sorted(item.request.key for item in completed) == list(range(requests))
    for item in completed:
        assert bool(item.error) == (not item.responses)
        assert len(item.responses) in (0, 3)
        for response in item.responses:
            assert response.behavior_logprobs is not None
            assert len(response.behavior_logprobs) == len(response.tokens) > 0
    served = servers[0].served_faults + servers[1].served_faults
    fewer = served.pop("fewer", 0)
    bad = {name: count for name, count in counters.items() if name.startswith("errors.") and name != "errors.readmit"}
    if not restarts:
        assert counters.get("missing_samples", 0) == fewer
        assert sum(bad.values()) == served.total()
        assert counters["calls"] == sum(len(server.requests) for server in servers)


def wait_for(condition: Any, seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)
