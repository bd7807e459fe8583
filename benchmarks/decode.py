"""Tokens per second of the embedded engine beside transformers' generate, on one thread.

Run `python -m benchmarks.decode`; it writes `benchmarks/results/decode.json` and prints a table. Both sides decode the
same model, prompts and response lengths by sampling at temperature 1; only the tokens asked for count. Generate gets
one left-padded batch and goes on until its longest response is done, each row stopping at its own length. It runs with
its default cache and with its static one, and the ratio is taken against the better of the two. The three take turns,
so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.harness import spread, write_results
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import generate
from driftproof.types import Prompt, Request, Sampling

MODEL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TARGET = 1.15
QUICKSTART_TARGET_MS = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be decoded: one prompt per row, `samples` responses to each, response lengths forced."""

    name: str
    prompts: list[NDArray[np.int32]]
    lengths: NDArray[np.int64]
    """int64 [prompts]: response tokens."""
    samples: int = 1

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum()) * self.samples


def workload(
    name: str, sequences: int, prompt: tuple[int, int], response: tuple[int, int], samples: int = 1
) -> Workload:
    """Prompt and response lengths uniform in the ranges given, ends included."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(prompt[0], prompt[1] + 1, sequences)
    return Workload(
        name=name,
        prompts=[generator.integers(1, MODEL["vocab_size"], length).astype(np.int32) for length in lengths],
        lengths=generator.integers(response[0], response[1] + 1, sequences),
        samples=samples,
    )


def new_model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**MODEL, bos_token_id=None, eos_token_id=None)).eval()


def embedded(engine: EmbeddedEngine, work: Workload) -> None:
    requests = [
        Request(
            key=key,
            prompt=Prompt(index=key, text="", answer=""),
            prompt_tokens=prompt,
            samples=work.samples,
            sampling=Sampling(max_tokens=int(length), seed=key),
        )
        for key, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True))
    ]
    answers = generate(engine, requests)
    assert sum(len(response.tokens) for responses in answers for response in responses) == work.tokens


class _StopAt(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self._lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self._lengths


def transformers_generate(model: Qwen3ForCausalLM, work: Workload, cache: str) -> None:
    width = max(len(prompt) for prompt in work.prompts)
    ids = torch.zeros(len(work.prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(work.prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=int(work.lengths.max()),
        num_return_sequences=work.samples,
        pad_token_id=0,
        cache_implementation=cache,
        disable_compile=True,
    )
    ends = torch.from_numpy(work.lengths).repeat_interleave(work.samples) + width
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=mask, generation_config=config, stopping_criteria=StoppingCriteriaList([_StopAt(ends)])
        )
    assert output.shape == (len(ends), int(ends.max()))


def measure(runs: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every run, taken in turns after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(work: Workload, slots: int, repetitions: int) -> dict[str, Any]:
    engine, model = EmbeddedEngine(new_model(), slots=slots), new_model()
    seconds = measure(
        {
            "embedded": lambda: embedded(engine, work),
            "generate, dynamic cache": lambda: transformers_generate(model, work, "dynamic"),
            "generate, static cache": lambda: transformers_generate(model, work, "static"),
        },
        repetitions,
    )
    rates = {name: round(work.tokens / statistics.median(values)) for name, values in seconds.items()}
    best = max(rate for name, rate in rates.items() if name != "embedded")
    return {
        "case": work.name,
        "sequences": len(work.prompts) * work.samples,
        "tokens": work.tokens,
        "milliseconds": {name: spread([1e3 * value for value in values]) for name, values in seconds.items()},
        "tokens per second": rates,
        "ratio": round(rates["embedded"] / best, 3),
    }


def cases(repetitions: int) -> list[dict[str, Any]]:
    results = []
    for sequences in (64, 256):
        unequal = workload("unequal", sequences, prompt=(4, 32), response=(8, 96))
        equal = workload("equal", sequences, prompt=(16, 16), response=(48, 48))
        results += [compare(work, sequences, repetitions) for work in (unequal, equal)]
    quickstart = workload("quickstart 16 x 8", 16, prompt=(5, 7), response=(3, 5), samples=8)
    return [*results, compare(quickstart, 128, 5 * repetitions)]


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'case':<20}{'rows':>6}{'tokens':>8}{'embedded':>10}{'dynamic':>9}{'static':>9}{'ratio':>7}{'median ms':>11}"
    ]
    for result in results:
        rates = result["tokens per second"].values()
        lines.append(
            f"{result['case']:<20}{result['sequences']:>6}{result['tokens']:>8}"
            + "".join(f"{rate:>{width}.0f}" for rate, width in zip(rates, (10, 9, 9), strict=True))
            + f"{result['ratio']:>7.2f}{result['milliseconds']['embedded']['median']:>11.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = cases(arguments.repetitions)
    quickstart = results[-1]["milliseconds"]["embedded"]
    write_results(
        "decode",
        threads=1,
        model={"architecture": "Qwen3", **MODEL},
        targets={
            "ratio at unequal lengths": {
                "at least": TARGET,
                **{str(r["sequences"]): r["ratio"] for r in results if r["case"] == "unequal"},
            },
            "quickstart step, ms": {
                "at most": QUICKSTART_TARGET_MS,
                "median": quickstart["median"],
                "least": quickstart["least"],
            },
        },
        cases=results,
    )
    print(table(results))


if __name__ == "__main__":
    main()
