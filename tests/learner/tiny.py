"""Random models small enough for a test, and learners around them."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.objectives import build
from driftproof.types import Channel

VOCABULARY = 50
# Wide weights make peaked, varied distributions, so that a wrong position or mask shows.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "qwen3": lambda **changes: Qwen3Config(**_SIZES | {"tie_word_embeddings": True} | changes),
    "llama": lambda **changes: LlamaConfig(**_SIZES | {"tie_word_embeddings": False} | changes),
    # Half of its layers slide a window, and its logits are capped.
    "gemma2": lambda **changes: Gemma2Config(
        **_SIZES | {"sliding_window": 4, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8} | changes
    ),
    "mistral": lambda **changes: MistralConfig(**_SIZES | changes),
    "granite": lambda **changes: GraniteConfig(**_SIZES | {"logits_scaling": 4.0} | changes),
    "cohere": lambda **changes: CohereConfig(**_SIZES | {"logit_scale": 0.25} | changes),
    "hyperclovax": lambda **changes: HyperCLOVAXConfig(**_SIZES | {"logits_scaling": 0.25} | changes),
    # Learned positions, of which there are 16, and dropout.
    "gpt2": lambda **changes: GPT2Config(
        **{
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 16,
            "initializer_range": 0.3,
        }
        | {"bos_token_id": None, "eos_token_id": None}
        | changes
    ),
}


def tiny_model(architecture: str = "qwen3", seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture](**changes))


def tiny_learner(
    objective: str = "asympo",
    *,
    architecture: str = "qwen3",
    seed: int = 0,
    bfloat16: bool = False,
    fields: dict[str, Any] | None = None,
    steps: int = 10,
    **settings: Any,
) -> Learner:
    """`fields` are the objective's; its reference policy, where it needs one, is another random model."""
    chosen = build(objective, **(fields or {}))
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    policy = Policy(tiny_model(architecture, seed), dtype=dtype, value_head=Channel.VALUES in chosen.needs)
    reference = Policy(tiny_model(seed=77)) if Channel.REFERENCE_LOGPROBS in chosen.needs else None
    learner = LearnerSettings(**{"lr": 1e-2} | settings)
    return Learner(policy, chosen, learner, steps=steps, reference=reference)


def own_logprobs(model: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probs of a response by a plain forward pass of prompt and response; with gradient."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(response, dtype=torch.int64)[:, None])[:, 0]
