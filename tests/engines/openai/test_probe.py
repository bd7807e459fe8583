from pathlib import Path

import pytest

from driftproof.engines.http import Unreachable, server_url
from driftproof.engines.openai.probe import ServerFacts, probe
from driftproof.engines.openai.wire import Dialect
from driftproof.errors import EngineError

from .server import TableServer, serving


def test_the_facts_of_a_vllm_server():
    server = TableServer(max_model_len=99)
    with serving(server):
        facts = probe(f"{server.url}/v1/")
    assert facts == ServerFacts(
        url=server.url,
        dialect=Dialect.VLLM,
        models=("tiny",),
        model="tiny",
        version="0.32.0",
        token_ids=True,
        logprobs=True,
        tempered_logprobs=False,
        max_length=99,
        started="1.5e+09",
    )
    assert server.requests == []


def test_what_a_server_lacks_is_seen():
    for server, expected in (
        (TableServer(tempered=True), {"tempered_logprobs": True}),
        (TableServer(token_ids=False), {"token_ids": False, "dialect": Dialect.VLLM}),
        (TableServer(log_probs=False), {"logprobs": False, "tempered_logprobs": False}),
        (TableServer(max_model_len=None, tells_start=False), {"max_length": None, "started": ""}),
        # It does not say that it is vLLM, but answers as vLLM does.
        (TableServer(owner="a fork"), {"dialect": Dialect.VLLM, "token_ids": True, "version": ""}),
        (TableServer(owner="a stranger", token_ids=False), {"dialect": Dialect.OPENAI, "token_ids": False}),
        (TableServer(owner="sglang"), {"dialect": Dialect.SGLANG, "token_ids": True}),
        (TableServer(owner="llamacpp"), {"dialect": Dialect.LLAMACPP, "max_length": 64, "logprobs": False}),
        (TableServer(owner="llamacpp"), {"version": "b1", "token_ids": True}),
    ):
        with serving(server):
            facts = probe(server.url)
        assert {name: getattr(facts, name) for name in expected} == expected


def test_a_server_that_cannot_be_asked(tmp_path: Path):
    server = TableServer()
    with serving(server):
        server.stop()
        with pytest.raises(Unreachable, match=f"{server.url}/v1/models: Connect"):
            probe(server.url)
        server.key = "s3cret"
        server.start()
        for server.public in (False, True):
            with pytest.raises(EngineError, match=r"status 401.*environment variable.*--engine.api_key_variable"):
                probe(server.url)
        server.key = ""
        with pytest.raises(EngineError, match="does not serve model 'huge'; it serves tiny"):
            probe(server.url, model="huge")
        with pytest.raises(EngineError, match="lists no models"):
            probe(f"{server.url}/elsewhere")


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://host:99999", "http://[", "/tmp"]
)
def test_an_address_that_is_none(url: str):
    with pytest.raises(EngineError, match="it looks like http://127"):
        server_url(url)
