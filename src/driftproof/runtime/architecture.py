"""Whether a model's architecture can be trained and decoded, tried on a small stand-in before anything is started."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from driftproof.engines.embedded.decode import check_decoding, check_model
from driftproof.errors import EngineError, ModelError
from driftproof.learner.policy import Policy
from driftproof.runtime.resources import read_config
from driftproof.weights.models import checkpoint_activations, readable
from driftproof.weights.standin import stand_in


def check_architecture(
    model: Path, *, trained: bool = True, decoded: bool = True, gradient_checkpointing: bool = False
) -> None:
    """Refuse a model that would be trained or (by the embedded engine) decoded wrongly.

    Raises:
        ModelError: with the sentence that the run would end with.
    """
    configuration = read_config(model).to_json_string(use_diff=False)
    _check(configuration, model, trained, decoded, gradient_checkpointing)


@lru_cache(maxsize=16)
def _check(configuration: str, model: Path, trained: bool, decoded: bool, gradient_checkpointing: bool) -> None:
    config = read_config(model)
    if trained:
        _refuse_quantized(config, model)
    small = stand_in(config)
    try:
        if small is None:
            # The rest is seen when its weights are loaded.
            with readable("transformers makes no causal language model of it"), torch.device("meta"):
                whole = AutoModelForCausalLM.from_config(config)
            if decoded:
                check_model(whole)
            return
        if trained:
            Policy(small)
        if gradient_checkpointing:
            checkpoint_activations(small)
        if decoded:
            check_decoding(small)
    except (ModelError, EngineError) as error:
        raise ModelError(f"{model}: {error}") from error


def _refuse_quantized(config: Any, model: Path) -> None:
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise ModelError(
            f"{model} is quantized ({method}), and quantized weights cannot be trained; give the model's directory in "
            "bfloat16, float16 or float32"
        )
