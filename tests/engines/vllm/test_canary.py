from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from driftproof.engines.http import open_client
from driftproof.engines.vllm.updater import LENGTH, SEQUENCES, Canary
from driftproof.errors import EngineError
from driftproof.learner.packing import pack
from driftproof.learner.policy import Policy
from driftproof.types import FinishReason, Group, Response, Verdict
from driftproof.weights.snapshots import Publisher
from tests.engines.vllm.stand_in import StandIn


@pytest.fixture
def snapshots(tmp_path: Path, tiny_model_dir: Path) -> list[Path]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    publisher = Publisher(tmp_path, tiny_model_dir)
    first = publisher.publish(0, model.state_dict()).path
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    return [first, publisher.publish(1, model.state_dict()).path]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


def test_it_expects_what_the_learner_computes(snapshots: list[Path], tiny_model_dir: Path) -> None:
    canary = Canary(tiny_model_dir)
    found = []
    for snapshot in snapshots:
        groups = [
            Group.from_responses(
                0,
                tokens[:1].astype(np.int32),
                [Response(tokens=tokens[1:].astype(np.int32), finish_reason=FinishReason.LENGTH)],
                [Verdict(reward=0.0)],
            )
            for tokens in canary.sequences
        ]
        policy = Policy.open(snapshot, device="cpu")
        scores = torch.empty(SEQUENCES * (LENGTH - 1))
        for micro_batch in pack(groups, token_budget=1 << 12):
            scores[micro_batch.tokens_N] = policy.score(micro_batch).logprobs_N.detach()
        found.append(scores.view(SEQUENCES, LENGTH - 1).numpy())
    assert np.abs(canary.expected(snapshots[0]) - found[0]).max() < 1e-5
    assert np.abs(canary.expected(snapshots[1]) - found[1]).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-2


def check(canary: Canary, url: str, snapshot: Path) -> float:
    async def ask() -> float:
        async with open_client() as client:
            return await canary.check(client, url, snapshot)

    return asyncio.run(ask())


def test_a_server_with_these_weights_passes_and_any_other_does_not(
    server: StandIn, snapshots: list[Path], tiny_model_dir: Path
) -> None:
    canary = Canary(tiny_model_dir)
    with pytest.raises(EngineError, match=r"does not answer with the weights of step-00000000.*0\.001 is tolerated"):
        check(canary, server.url, snapshots[0])
    canary.tolerance = 100.0
    expected = np.abs(canary.expected(snapshots[0]) - server.logprob).max()
    assert check(canary, server.url, snapshots[0]) == pytest.approx(expected)
    server.logprob = math.nan
    with pytest.raises(EngineError, match="differ by up to nan"):
        check(canary, server.url, snapshots[0])


def test_a_server_without_prompt_logprobs_is_an_error(
    server: StandIn, snapshots: list[Path], tiny_model_dir: Path
) -> None:
    canary = Canary(tiny_model_dir)
    server.trouble["/v1/completions"] = (400, "prompt_logprobs is unknown")
    with pytest.raises(EngineError, match=r"status 400.*prompt_logprobs is unknown"):
        check(canary, server.url, snapshots[0])
    server.trouble["/v1/completions"] = (200, "no choices")
    with pytest.raises(EngineError, match="gives no prompt log-probs"):
        check(canary, server.url, snapshots[0])


def test_several_servers_may_be_checked_at_once(server: StandIn, snapshots: list[Path], tiny_model_dir: Path) -> None:
    canary = Canary(tiny_model_dir, tolerance=100.0)
    found: list[float] = []

    threads = [
        threading.Thread(target=lambda path=path: found.append(check(canary, server.url, path)))
        for path in snapshots * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 2


def test_a_tolerance_must_be_positive(tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="tolerance is 0"):
        Canary(tiny_model_dir, tolerance=0.0)
