"""Tiny random models, and requests to ask of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config

from driftproof.engines.embedded.cache import SlotCache
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Completed
from driftproof.types import Prompt, Request, Response, Sampling

VOCABULARY = 61

# Wide weights make peaked, varied distributions, so that a wrong cache or position shows.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.35,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**_GROUPED, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**_GROUPED, tie_word_embeddings=False),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=64),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
}


def tiny_model(architecture: str = "qwen3", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()


def ask(
    key: int,
    prompt: Sequence[int] | NDArray[np.int32],
    *,
    samples: int = 1,
    want_logprobs: bool = False,
    max_tokens: int = 8,
    **sampling: Any,
) -> Request:
    return Request(
        key=key,
        prompt=Prompt(index=key, text="", answer=""),
        prompt_tokens=np.array(prompt, dtype=np.int32),
        samples=samples,
        sampling=Sampling(max_tokens=max_tokens, **sampling),
        want_logprobs=want_logprobs,
    )


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def drain(engine: EmbeddedEngine) -> list[Completed]:
    """Everything under way, in the order of completion."""
    completed: list[Completed] = []
    for _ in range(10_000):
        completed += engine.collect()
        if engine.room == engine.slots:
            return completed
    raise AssertionError("the engine does not come to an end")


def tokens_of(responses: Sequence[Response]) -> list[list[int]]:
    return [response.tokens.tolist() for response in responses]


def nbytes(cache: SlotCache) -> int:
    """Bytes held by keys and values."""
    return sum(states.nbytes for states in cache._states)
