"""The engine `openai` against a bare asyncio client: tokens per second from the same vLLM at the same concurrency.

    python -m benchmarks.client --python .venv-vllm/bin/python --model models/tiny-qwen3

Both send the same requests: token ids, fresh seeds, ids wanted back. Taken in turns on one server, after one turn of
each to warm it up. A model of random weights (`driftproof tiny-model --random`) writes the longest responses.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import httpx2

from benchmarks.harness import spread, write_results
from driftproof.engines.openai.engine import OpenAIEngine
from driftproof.engines.protocol import generate
from driftproof.engines.vllm.launch import check_environment, launch
from driftproof.tasks import build
from driftproof.tasks.codec import Codec
from driftproof.types import Prompt, Request, Sampling
from driftproof.weights.models import inspect_model

REQUESTS, SAMPLES, TOKENS, CONCURRENT, TURNS = 64, 8, 64, 128, 5
TARGET = 0.95


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    codec, prompts = Codec(arguments.model), build("arithmetic").train[:REQUESTS]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "vllm.log"
        server = launch(arguments.python, arguments.model, log=log, device="cpu", threads=1, slots=CONCURRENT)
        try:
            server.wait_ready(600)
            bare, ours = [], []
            engine = open_engine(server.url, arguments.model, codec, prompts[0])
            for turn in range(TURNS + 1):
                bare.append(asyncio.run(bare_rate(server.url, codec, prompts, turn)))
                ours.append(engine_rate(engine, codec, prompts, turn))
            engine.close()
        finally:
            server.stop()
    ratios = [one / other for one, other in zip(ours[1:], bare[1:], strict=True)]
    write_results(
        "client",
        vllm=check_environment(arguments.python),
        requests=REQUESTS,
        samples=SAMPLES,
        tokens_per_response=TOKENS,
        concurrent_responses=CONCURRENT,
        bare_tokens_per_second=spread(bare[1:]),
        engine_tokens_per_second=spread(ours[1:]),
        ratio=spread(ratios),
        targets={"median ratio": {"at_least": TARGET}},
    )


def open_engine(url: str, model: Path, codec: Codec, prompt: Prompt) -> OpenAIEngine:
    return OpenAIEngine(
        [url],
        vocabulary=inspect_model(model).vocabulary,
        tokenizer=codec,
        sample_text=prompt.text,
        slots=CONCURRENT,
    )


def engine_rate(engine: OpenAIEngine, codec: Codec, prompts: list[Prompt], turn: int) -> float:
    requests = [
        Request(
            key=key,
            prompt=prompt,
            prompt_tokens=codec.encode(prompt),
            samples=SAMPLES,
            sampling=Sampling(max_tokens=TOKENS, seed=1000 * turn + key),
        )
        for key, prompt in enumerate(prompts)
    ]
    started = time.perf_counter()
    answers = generate(engine, requests)
    seconds = time.perf_counter() - started
    return sum(len(response.tokens) for responses in answers for response in responses) / seconds


async def bare_rate(url: str, codec: Codec, prompts: list[Prompt], turn: int) -> float:
    """As little as a client can do: send, take the ids, count them."""
    gate = asyncio.Semaphore(CONCURRENT // SAMPLES)
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def ask(key: int, prompt: Prompt) -> int:
            body = {
                "model": model,
                "prompt": codec.encode(prompt).tolist(),
                "n": SAMPLES,
                "max_tokens": TOKENS,
                "temperature": 1.0,
                "seed": 500_000 + 1000 * turn + key,
                "return_token_ids": True,
                "skip_special_tokens": False,
            }
            async with gate:
                answer = (await client.post("/v1/completions", json=body)).json()
            return sum(len(choice["token_ids"]) for choice in answer["choices"])

        started = time.perf_counter()
        tokens = await asyncio.gather(*(ask(key, prompt) for key, prompt in enumerate(prompts)))
        return sum(tokens) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
