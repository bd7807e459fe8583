"""Reward functions as people bring them from elsewhere; a verifier's process imports this module by name."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import numpy as np

Chat = list[dict[str, str]]


# Of TRL's form.


def columns(completions: list[str], solution: list[str], weight: list[int], **kwargs: object) -> list[float]:
    return [w * (c == s) for c, s, w in zip(completions, solution, weight, strict=True)]


def all_by_keyword(**kwargs: Any) -> list[float]:
    assert kwargs.keys() == {"prompts", "completions", "completion_ids", "answer", "solution", "weight"}, sorted(kwargs)
    return [float(len(ids)) for ids in kwargs["completion_ids"]]


def chat(completions: list[Chat], prompts: list[Chat], **kwargs: object) -> list[float]:
    roles = [[message["role"] for message in prompt] for prompt in prompts]
    assert roles == [["system", "user"]] * len(prompts), roles
    return [
        float(completion[0]["content"] == "2" and completion[0]["role"] == "assistant") for completion in completions
    ]


async def waits(completions: list[str], answer: list[str], **kwargs: object) -> list[float]:
    await asyncio.sleep(0.01)
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def array(completions: list[str], answer: list[str]) -> Any:
    return np.array([c == a for c, a in zip(completions, answer, strict=True)], np.float32)


def booleans(completions: list[str], answer: list[str]) -> Any:
    return [np.bool_(c == a) for c, a in zip(completions, answer, strict=True)]


def boolean_array(completions: list[str], answer: list[str]) -> Any:
    return np.array(completions) == np.array(answer)


def tensor(completions: list[str], answer: list[str]) -> Any:
    import torch

    return torch.tensor(
        [float(c == a) for c, a in zip(completions, answer, strict=True)], requires_grad=True
    ).bfloat16()


def tensors(completions: list[str], answer: list[str]) -> Any:
    import torch

    return tuple(torch.tensor(c == a) for c, a in zip(completions, answer, strict=True))


def generator(completions: list[str], answer: list[str]) -> Any:
    return (int(c == a) for c, a in zip(completions, answer, strict=True))


def none(completions: list[str], **kwargs: object) -> list[float | None]:
    return [None if completion == "pass" else 1.0 for completion in completions]


def none_in_an_array(completions: list[str], **kwargs: object) -> Any:
    return np.array([np.nan if completion == "pass" else 1.0 for completion in completions])


def shortest(completions: list[str], **kwargs: object) -> list[float]:
    """Compares the responses with each other."""
    return [float(len(c) == min(map(len, completions))) for c in completions]


def shortest_unless_it_breaks(completions: list[str], **kwargs: object) -> list[float]:
    if "break" in completions:
        raise ValueError("broken")
    return shortest(completions)


def too_few(completions: list[str], **kwargs: object) -> list[float]:
    return []


def needs_solution(completions: list[str], solution: list[str]) -> list[float]:
    return [1.0 for _ in solution]


def needs_the_trainer(completions: list[str], trainer_state: Any) -> list[float]:
    return [1.0]


def length(completions: list[str], **kwargs: object) -> list[float]:
    return [float(len(completion)) for completion in completions]


def right(completions: list[str], answer: list[str], **kwargs: object) -> list[float]:
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


# Of verl's form.


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None
) -> Any:
    assert (data_source, extra_info) == ("sums", {"index": 3})
    return {"score": float(solution_str == str(ground_truth)), "extra": "text"}


async def compute_score_later(solution_str: str, ground_truth: str, **kwargs: Any) -> bool:
    await asyncio.sleep(0.01)
    assert sorted(kwargs) == ["data_source", "extra_info"]
    return solution_str == ground_truth


# Of none.


def prompt_completion(prompt: str, completion: str) -> float:
    return 1.0


def answer_first(gold: str, text: str) -> float:
    return 1.0


def three(text: str, answer: str, prompt: str) -> float:
    return 1.0


def lists(prompt: str, completion: str, **kwargs: object) -> float:
    return 1.0


class Judge:
    def __call__(self, text: str, answer: str) -> float:
        return float(text == answer)


judge = Judge()


# Of ours, with ways to go wrong.


def fragile(text: str, answer: str) -> float:
    match text:
        case "loop":
            while True:
                pass
        case "raise":
            raise KeyError("no box")
        case "recurse":
            return fragile(text, answer)
        case "memory":
            return float(len(bytearray(64 * 2**30)))
        case "numbers":
            return float(len(str(9**9**8)))
        case "killed":  # as by the kernel, when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        case "nan":
            return float("nan")
        case "text":
            return "1.0"  # type: ignore[return-value]
    return float(text == answer)


def keywords_too(text: str, answer: str, **kwargs: object) -> float:
    return float(text == answer and not kwargs)


def broken(text: str, answer: str) -> float:
    raise RuntimeError("no licence")


def broken_for_some(text: str, answer: str) -> float:
    if answer == "unreadable":
        raise ValueError("the answer cannot be read")
    return fragile(text, answer)


def unboxed(text: str, answer: str) -> float:
    """Raises on every response without a box."""
    return float(text[text.index("\\boxed{") + 7 : text.index("}")] == answer)


def signed(text: str, answer: str) -> float:
    return 1.0 if fragile(text, answer) else -1.0


def slow_sum(text: str, answer: str) -> float:
    time.sleep(0.2)
    return 1.0


def nothing(text: str, answer: str) -> None:
    return None
