"""A real server over a real ledger."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, STOPPING
from driftproof.report.view import View
from driftproof.rollout.requests import make_request
from driftproof.runtime.build import open_inbox
from driftproof.tasks.codec import Codec
from driftproof.types import Sampling
from driftproof.weights.snapshots import Publisher, list_snapshots
from tests.inbox.live import EOS, Client, make_run, serving, written

SCORERS = str(Path(__file__).parent.parent / "runtime")


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return make_run(tmp_path, tiny_model_dir)


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with serving(run) as serves:
        yield serves


@pytest.fixture
def ledger(run: Path) -> Iterator[Ledger]:
    with Ledger(run / "ledger.sqlite") as opened:
        yield opened


def test_a_group_goes_its_way(client: Client, ledger: Ledger, tiny_model_dir: Path) -> None:
    codec = Codec(tiny_model_dir)
    answer = client.call("/prompts?n=3&worker=w").body
    assert (answer["state"], answer["step"], answer["lease_seconds"]) == ("running", None, 120.0)
    assert answer["retry_after_seconds"] == 0
    prompts = answer["prompts"]
    assert [prompt["dispatch"] for prompt in prompts] == [0, 1, 2]
    prompt = prompts[1]
    assert prompt["messages"] == [{"role": "user", "content": prompt["prompt"]}]
    assert prompt["chat_template_kwargs"] == {}
    assert codec.decode(prompt["prompt_tokens"]) == prompt["prompt"]
    builtin = make_request(
        1, None, None, samples=4, sampling=Sampling(max_tokens=4, stop_ids=codec.stop_ids), want_logprobs=False
    )  # type: ignore[arg-type]
    assert prompt["sampling"] == {
        "max_tokens": 4, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "stop_ids": [EOS], "seed": builtin.sampling.seed
    }  # fmt: skip
    assert (prompt["samples"], prompt["want_logprobs"]) == (4, False)

    assert client.post(*map(written, prompts)).outcomes == ["accepted"] * 3
    records = list(ledger.records())
    assert [record.state for record in records] == ["ready"] * 3
    assert {record.worker for record in records} == {"inbox:w"}
    assert [group.prompt_tokens.tolist() for group in (r.group for r in records)] == [
        prompt["prompt_tokens"] for prompt in prompts
    ]
    assert records[0].group.response_tokens.tolist() == [5, EOS] * 4
    assert records[0].group.rewards.tolist() == [1.0] * 4
    assert not records[0].group.retokenized
    assert client.call("/status").body == {
        "state": "running", "step": 0, "steps": 4, "dispatched": 3, "leased": 0, "ready": 3, "trained": 0
    }  # fmt: skip


def test_admission_closes_and_the_run_ends(client: Client, ledger: Ledger) -> None:
    assert len(client.prompts(100)) == 12
    closed = client.call("/prompts?n=4").body
    assert (closed["prompts"], closed["state"]) == ([], "running")
    assert closed["retry_after_seconds"] > 0
    for state in (STOPPING, FINISHED):
        ledger.set_state(state)
        assert client.call("/prompts").body | {"step": 0} == closed | {"state": state, "step": 0}


def test_text_is_tokenized_and_verified_as_a_built_in_worker_would(
    client: Client, ledger: Ledger, tiny_model_dir: Path
) -> None:
    codec = Codec(tiny_model_dir)
    (prompt,) = client.prompts()
    right = prompt["prompt"].removesuffix("+0=")
    texts = [
        {"text": right, "finish_reason": "stop"},
        {"text": f"{right}{right}", "finish_reason": "stop"},
        {"text": f"{right}123", "finish_reason": "length"},
        {"tokens": codec.encode_response(right), "finish_reason": "stop"},
    ]
    group = {"dispatch": prompt["dispatch"], "worker": "w", "responses": texts}
    assert client.post(group).outcomes == ["accepted"]
    (record,) = ledger.records()
    assert record.group.rewards.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert record.group.retokenized
    responses = [tokens.tolist() for tokens in record.group.split()]
    assert responses[0] == responses[3] == codec.encode_response(right)
    assert responses[2] == codec.encode_response(f"{right}123")[:-1], "what was cut off has no stop token"


def test_a_verifier_that_hangs_costs_one_reward_and_holds_up_nobody_else(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCORERS)
    run = make_run(tmp_path, tiny_model_dir, "--task.verifier", "scorers:hangs", "--verify.timeout_seconds", 1)
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger:
        prompts = client.prompts(8)
        hangs = next(prompt for prompt in prompts if prompt["prompt"] == "1+0=")
        others = [prompt for prompt in prompts if prompt is not hangs]
        posted: list[list[str]] = []
        groups = [written(prompt, reward=None) for prompt in (hangs, others[0])]
        thread = threading.Thread(target=lambda: posted.append(client.post(*groups).outcomes))
        thread.start()
        served = 0
        while thread.is_alive():
            assert client.call("/status").status == 200
            served += thread.is_alive()
        assert served, "while the verifier is at work"
        assert posted == [["accepted", "accepted"]]
        rewards = {record.dispatch: record.group.rewards for record in ledger.records()}
        assert np.isnan(rewards[hangs["dispatch"]]).all()
        assert rewards[others[0]["dispatch"]].tolist() == [0.0] * 4
        assert ledger.events()["verification failed"][0] == 4


def test_a_verifier_that_cannot_start_is_tried_again(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def score(text, answer):\n    return 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = make_run(tmp_path, tiny_model_dir, "--task.verifier", "mine:score")
    (tmp_path / "mine.py").rename(tmp_path / "away")
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger:
        group = written(client.prompts()[0], reward=None)
        failed = client.post(group)
        assert failed.status == 503
        assert "mine:score" in failed.body["error"]
        assert ledger.status().leased == 1
        (tmp_path / "away").rename(tmp_path / "mine.py")
        assert client.post(group).outcomes == ["accepted"]
        assert next(ledger.records()).group.rewards.tolist() == [0.5] * 4


def test_logprobs_are_taken_exactly_where_the_objective_needs_them(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path, tiny_model_dir, "--objective.name", "grpo")
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger:
        (prompt,) = client.prompts()
        assert prompt["want_logprobs"]
        for bad, words in [
            ({}, "groups[0].responses[0].logprobs: the objective needs them"),
            ({"tokens": None, "text": "7"}, "groups[0].responses[0].logprobs: the objective needs them"),
            ({"logprobs": [-0.5]}, "groups[0].responses[0]: logprobs has 1 values for 2 tokens"),
            ({"logprobs": [-0.5, 0.1]}, "groups[0].responses[0].logprobs[1]: Input should be less than or equal to 0"),
            ({"logprobs": [-0.5, None]}, "groups[0].responses[0].logprobs[1]: Input should be a valid number"),
            ({"logprobs": [-0.5, float("nan")]}, "groups[0].responses[0].logprobs[1]: Input should be a finite number"),
            ({"logprobs": [-0.5, float("-inf")]}, "groups[0].responses[0].logprobs[1]: Input should be a finite"),
        ]:
            answer = client.post(written(prompt, **bad))
            assert answer.status == 422
            assert answer.problems[0].startswith(words), answer
        assert client.post(written(prompt, logprobs=[-0.5, -0.25])).outcomes == ["accepted"]
        logprobs = next(ledger.records()).group.behavior_logprobs
        assert logprobs is not None
        assert logprobs.tolist() == [-0.5, -0.25] * 4
        assert ledger.workers()["inbox:w"].requests_with_logprobs == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": [5, 10**6, EOS]}, ".responses[0].tokens[1]: 1000000 is outside the vocabulary of "),
        ({"tokens": [5, 2**40]}, ".responses[0].tokens[1]: Input should be less than 2147483648"),
        ({"tokens": [-1, EOS]}, ".responses[0].tokens[0]: Input should be greater than or equal to 0"),
        ({"tokens": [5, 1.0]}, ".responses[0].tokens[1]: Input should be a valid integer"),
        ({"tokens": [True, EOS]}, ".responses[0].tokens[0]: Input should be a valid integer"),
        ({"tokens": []}, ".responses[0].tokens: List should have at least 1 item"),
        ({"tokens": "5"}, ".responses[0].tokens: Input should be a valid list"),
        ({"tokens": [5, 5, 5, 5, EOS]}, ".responses[0].tokens: 5 tokens, the stop token included; max_tokens is 4"),
        ({"tokens": [5, 5]}, ".responses[0].tokens[1]: 5 is none of the stop_ids [1]"),
        ({"tokens": None}, ".responses[0]: give either tokens or text"),
        ({"text": "7"}, ".responses[0]: give either tokens or text"),
        ({"tokens": None, "text": "1234"}, ".responses[0].text: 5 tokens, the stop token included; max_tokens is 4"),
        ({"tokens": None, "text": "½"}, ".responses[0].text: the tokenizer cannot read '½'"),
        ({"tokens": None, "text": "", "finish_reason": "length"}, ".responses[0].text: is empty, and nothing was cut"),
        ({"tokens": None, "text": "\ud800"}, ".responses[0].text: "),
        ({"tokens": None, "text": 7}, ".responses[0].text: Input should be a valid string"),
        ({"finish_reason": "tool"}, ".responses[0].finish_reason: Input should be 'stop' or 'length'"),
        ({"finish_reason": None}, ".responses[0].finish_reason: Field required"),
        ({"reward": float("inf")}, ".responses[0].reward: Input should be a finite number"),
        ({"reward": float("nan")}, ".responses[0].reward: Input should be a finite number"),
        ({"reward": 1e300}, ".responses[0].reward: Input should be less than or equal to 1000000"),
        ({"reward": 10**400}, ".responses[0].reward: "),
        ({"reward": "1"}, ".responses[0].reward: Input should be a valid number"),
        ({"logprobs": [-0.5, -0.5]}, ".responses[0].logprobs: the objective does not need them"),
        ({"behavior": 1}, ".responses[0].behavior: Extra inputs are not permitted"),
        ({"\x1b[2J": 1}, ".responses[0].\x1b[2J: Extra inputs are not permitted"),
        ({"\ud800": 1}, ".responses[0]: Input should be a valid string"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_response_is_named(change: dict[str, Any], words: str, client: Client, ledger: Ledger) -> None:
    good, bad = client.prompts(2)
    answer = client.post(written(good), written(bad, **change))
    assert answer.status == 422
    assert answer.outcomes == ["accepted", "refused"]
    assert answer.problems[0].startswith(f"groups[1]{words}"), answer.problems
    assert answer.body["error"].startswith("1 of 2 groups were refused")
    assert (ledger.status().ready, ledger.status().leased) == (1, 1)
    assert ledger.events()["inbox refused groups"][0] == 1
    assert client.post(written(bad)).outcomes == ["accepted"], "it can be sent again"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dispatch": 1}, ".dispatch: 1 was never leased; so far 1 groups were"),
        ({"dispatch": 2**80}, ".dispatch: 1208925819614629174706176 was never leased"),
        ({"dispatch": -1}, ".dispatch: Input should be greater than or equal to 0"),
        ({"dispatch": "0"}, ".dispatch: Input should be a valid integer"),
        ({"worker": "../w"}, ".worker: String should match pattern"),
        ({"worker": ""}, ".worker: String should match pattern"),
        ({"responses": []}, ".responses: List should have at least 1 item"),
        ({"responses": [{"text": "7", "finish_reason": "stop"}]}, ".responses: 1 responses; a group has 4"),
        ({"responses": {}}, ".responses: Input should be a valid list"),
        ({"version": 3}, ".version: Extra inputs are not permitted"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_group_is_named(change: dict[str, Any], words: str, client: Client, ledger: Ledger) -> None:
    (prompt,) = client.prompts()
    answer = client.post(written(prompt) | change)
    assert (answer.status, answer.outcomes) == (422, ["refused"])
    assert answer.problems[0].startswith(f"groups[0]{words}"), answer.problems
    assert ledger.status().ready == 0


ONE_FIELD = "the body must be one JSON object of one field"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 422, ONE_FIELD),
        (b"\xff", 422, ONE_FIELD),
        (b"[" * 1_000_000, 413, "the body has more than"),
        (b"[" * 10_000, 422, ONE_FIELD),
        (b'{"groups": [\xff]}', 422, "the body is not UTF-8, byte 12"),
        (b'{"groups": [{"dispatch": 1}', 422, "the body is not JSON, byte 27: ',' or ']' belongs behind a group"),
        (b'{"groups": [{"dispatch": }]}', 422, "the body is not JSON, byte 25: Expecting value"),
        ('{"groups": [{"é": }]}'.encode(), 422, "the body is not JSON, byte 19: Expecting value"),
        (b'{"groups": [{}', 422, "the body is not JSON, byte 14"),
        (b'{"groups": [' + b"[" * 3000, 422, "groups[0]: maximum recursion depth exceeded"),
        (b'{"groups": [' + b"1" * 5000 + b"]}", 422, "groups[0]: Exceeds the limit"),
        (
            b'{"groups": [{"a": "' + b"a" * 9000 + b'"}]}',
            413,
            "the most that a group of this run can have",
        ),
        (b"[]", 422, ONE_FIELD),
        (b"{}", 422, ONE_FIELD),
        (b'{"groups": []}', 422, "groups: at least one belongs in a request"),
        (b'{"groups": {}}', 422, ONE_FIELD),
        (b'{"groups": [' + b"{}," * 64 + b"{}]}", 422, "groups: at most 64 in one request"),
        (b'{"groups": [{}], "more": 1}', 422, "one field, groups, and end behind it"),
        (b'{"groups": [{}]} x', 422, "one field, groups, and end behind it"),
        (b"", 422, "body: Field required"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_body_is_named(body: bytes, status: int, words: str, client: Client) -> None:
    answer = client.call("/groups", body)
    assert (answer.status, words in answer.body["error"]) == (status, True), answer


def test_a_form_is_told_to_be_json(client: Client) -> None:
    answer = client.call("/groups", b'{"groups": []}', {"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 422
    assert "Content-Type: application/json" in answer.body["error"]


@pytest.mark.parametrize("query", ["n=0", "n=-1", "n=x", "n=1e3", "worker=", "worker=a/b", "worker=a%0a", "worker=%1b"])
def test_a_bad_query_is_named(query: str, client: Client) -> None:
    answer = client.call(f"/prompts?{query}")
    assert answer.status == 422
    assert answer.body["error"].startswith(f"{query.split('=')[0]}: ")


def test_who_does_not_bear_the_token_gets_nothing(client: Client, ledger: Ledger) -> None:
    for wrong in ("", "Bearer", "Bearer ", "Bearer wrong", f"Basic {client.token}", "Bearer é", client.token):
        for path, body in (("/prompts", None), ("/groups", {}), ("/openapi.json", None), ("/nothing", None)):
            answer = client.call(path, body, {"Authorization": wrong})
            assert answer.status == 401
            assert client.token not in str(answer.body)
    assert ledger.status().dispatched == 0


def test_a_large_body_is_refused_before_it_is_read(run: Path) -> None:
    headers = f"Host: x\r\nAuthorization: Bearer {Client(0).token}\r\nContent-Type: application/json\r\n"
    head = f"POST /groups HTTP/1.1\r\n{headers}"
    with serving(run, max_bytes=1000) as client:
        # Announced: not a byte of it is waited for. In chunks: no more is read than the limit.
        for rest in (
            "Content-Length: 1000000000\r\n\r\n",
            f"Transfer-Encoding: chunked\r\n\r\n7d0\r\n{'x' * 2000}\r\n",
        ):
            with socket.create_connection(("127.0.0.1", client.port)) as connection:
                connection.settimeout(300)
                connection.sendall((head + rest).encode())
                assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        large = written(client.prompts()[0], tokens=[5] * 1000)
        answer = client.post(large)
        assert (answer.status, "send fewer groups at once" in answer.body["error"]) == (413, True)
        assert client.call("/status").status == 200


def test_duplicates_are_accepted_once_by_whomever(client: Client, ledger: Ledger) -> None:
    (prompt,) = client.prompts()
    assert client.post(written(prompt), written(prompt)).outcomes == ["accepted", "duplicate"]
    again = client.post(written(prompt))
    assert (again.status, again.outcomes) == (200, ["duplicate"])
    assert client.post(written(prompt, "other")).outcomes == ["duplicate"]
    assert ledger.status().ready == 1
    assert ledger.workers()["inbox:w"].groups == 1


POST = """
import json, sys, urllib.request
url, token, groups = json.loads(sys.argv[1])
sys.stdin.readline()
for group in groups:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"groups": [group]}).encode(), headers)
    print(json.load(urllib.request.urlopen(request))["groups"][0]["outcome"], flush=True)
"""


def test_two_processes_send_the_same_groups_at_once_to_two_servers(run: Path, client: Client, ledger: Ledger) -> None:
    groups = [written(prompt) for prompt in client.prompts(12)]
    with serving(run) as second:
        senders = [
            subprocess.Popen(
                [sys.executable, "-c", POST, json.dumps([f"http://127.0.0.1:{port}/groups", client.token, groups])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for port in (client.port, second.port)
        ]  # fmt: skip
        for sender in senders:
            assert sender.stdin is not None
            sender.stdin.write("\n")
            sender.stdin.flush()
        said = [sender.communicate(timeout=300)[0].split() for sender in senders]
    assert [sorted(pair) for pair in zip(*said, strict=True)] == [["accepted", "duplicate"]] * 12
    assert ledger.status().ready == 12


def test_an_expired_lease_is_good_until_another_worker_has_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path, tiny_model_dir, "--rollouts.lease_seconds", 0.05)
    with serving(run) as client, Ledger(run / "ledger.sqlite") as ledger:
        late, lost = client.prompts(2, "slow")
        time.sleep(0.06)
        assert client.post(written(late, "slow")).outcomes == ["accepted"]
        (again,) = client.prompts(1, "quick")
        assert again == lost
        assert client.post(written(lost, "slow")).outcomes == ["duplicate"]
        assert client.post(written(lost, "quick")).outcomes == ["accepted"]
        assert {record.dispatch: record.worker for record in ledger.records()} == {
            late["dispatch"]: "inbox:slow",
            lost["dispatch"]: "inbox:quick",
        }
        assert ledger.events()["late commit"][0] == 1


def test_workers_are_counted_like_built_in_ones(run: Path, ledger: Ledger) -> None:
    with serving(run) as client:
        begun = time.monotonic()
        time.sleep(0.1)
        prompts = client.prompts(2)
        time.sleep(0.2)
        client.post(*map(written, prompts))
        time.sleep(0.1)
        client.prompts(1)
        counters = ledger.workers()["inbox:w"]
        assert (counters.groups, counters.tokens, counters.requests_with_logprobs) == (2, 16, 0)
        assert counters.busy_seconds >= 0.2
        assert counters.waiting_seconds >= 0.1
        assert counters.busy_seconds + counters.waiting_seconds <= time.monotonic() - begun
        assert len(View.of(ledger).workers) == 1
    with serving(run) as client:
        client.post(*map(written, client.prompts(1)))
        after = ledger.workers()["inbox:w"]
    assert after.groups == 3, "another inbox goes on counting"
    assert after.busy_seconds >= counters.busy_seconds


def test_weights(run: Path, client: Client, tiny_model_dir: Path) -> None:
    none = client.call("/weights/latest")
    assert (none.status, "no weights are published yet" in none.body["error"]) == (404, True)
    publisher = Publisher(run / "snapshots", tiny_model_dir, keep=2)
    for step in range(4):
        publisher.publish(step, {"w": torch.arange(3.0) + step})
    (run / "snapshots" / "step-00000003" / "notes.txt").write_text("not for others")
    assert client.call("/prompts").body["step"] == 3
    weights = client.call("/weights/latest").body
    path = run / "snapshots" / "step-00000003"
    assert (weights["step"], weights["path"]) == (3, str(path))
    names = {file["name"]: file for file in weights["files"]}
    assert set(names) == {file.name for file in path.iterdir() if file.suffix in (".json", ".safetensors")}
    for file in names.values():
        content = (path / file["name"]).read_bytes()
        assert file["size"] == len(content)
        sent = client.call(file["url"])
        assert sent.status == 200
        assert (sent.body if isinstance(sent.body, bytes) else json.dumps(sent.body)) == content
    pruned = client.call("/weights/0/model.safetensors")
    assert (pruned.status, [s.step for s in list_snapshots(run / "snapshots")]) == (404, [2, 3])
    assert client.call("/weights/3/notes.txt").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "3/../../config.toml", "3/..%2f..%2fconfig.toml", "3/%2e%2e/%2e%2e/inbox.token", "3/..", "3/.", "3/",
        "3/..%5cconfig.toml", "3//etc/passwd", "3/%2fetc%2fpasswd", "../3/config.json", "3/config.json%00.safetensors",
        "latest/config.json", "-1/config.json", "3/*.json", "3/nothing.json", f"{10**30}/config.json", "x/config.json",
    ],
)  # fmt: skip
def test_no_way_out_of_the_snapshots(path: str, run: Path, client: Client, tiny_model_dir: Path) -> None:
    Publisher(run / "snapshots", tiny_model_dir).publish(3, {"w": torch.zeros(1)})
    (run / "snapshots" / "config.json").write_text("{}")
    assert client.call("/weights/3/config.json").status == 200
    assert client.call(f"/weights/{path}").status in (404, 422)


def test_settings_that_a_resume_has_changed_are_not_used_on(run: Path, client: Client) -> None:
    (prompt,) = client.prompts()
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("steps = 4", "steps = 8"))
    assert client.post(written(prompt)).outcomes == ["accepted"]
    for changed in (config.replace("temperature = 1.0", "temperature = 0.5"), config[:100]):
        (run / "config.toml").write_text(changed)
        for answer in (client.call("/prompts"), client.post(written(prompt))):
            assert answer.status == 503
            assert "start its inbox again" in answer.body["error"]


def test_a_run_that_goes_away_is_said(run: Path, client: Client) -> None:
    (run / "ledger.sqlite").rename(run / "away")
    answer = client.call("/status")
    assert answer.status == 503
    assert "does not exist" in answer.body["error"]


def test_recorded_traces_and_other_directories_have_no_inbox(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run"):
        open_inbox(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value one can change something."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in leaves(inner, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[tuple[Path, Client]]:
    run = make_run(tmp_path_factory.mktemp("shared"), tiny_model_dir)
    with serving(run) as client:
        yield run, client


@given(data=st.data())
@settings(max_examples=150)
def test_a_group_with_anything_in_the_place_of_anything(data: st.DataObject, shared: tuple[Path, Client]) -> None:
    run, client = shared
    with Ledger(run / "ledger.sqlite") as ledger:
        if ledger.status().dispatched == 0:
            client.prompts(1)
    group = written({"dispatch": 0, "samples": 4})
    answer = client.post(changed(group, data.draw(st.sampled_from(leaves(group))), data.draw(JSON)))
    assert answer.status in (200, 422)
    assert (answer.status == 422) == bool(answer.problems)
    assert all(problem.startswith("groups[0]") for problem in answer.problems)
