"""A Hugging Face causal language model as the policy that is trained.

Guarantees: the log-probs of `score` are those of the model's own forward pass, which is compared once, when the policy
is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftproof.learner.packing import MicroBatch
from driftproof.logprobs import TokenLogprobs, token_logprobs
from driftproof.models import ModelError, inspect_model


class Policy:
    """A model that scores packed responses."""

    def __init__(self, model: Any, *, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        """`temperature` is the sampling temperature; under `dtype` bfloat16 the forward pass runs in autocast.

        Raises:
            ModelError: the model changes its logits in a way that is not reproduced here.
        """
        self.model = model
        self.temperature = temperature
        self.dtype = dtype
        self.decoder = self.model.get_decoder()
        self.head = self.model.get_output_embeddings()
        config = self.model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.full_attention = _is_full_attention(config)
        self._check_head()

    @classmethod
    def open(cls, path: Path, *, device: str, temperature: float = 1.0, bfloat16: bool = False) -> Policy:
        """The policy of a model directory, weights in float32.

        Raises:
            ModelError: see `inspect_model`; also weights that are missing or of another shape.
        """
        from transformers import AutoModelForCausalLM

        inspect_model(path)
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(f"{path}: the weights cannot be loaded: {error}") from error
        if loading["missing_keys"]:
            raise ModelError(f"{path}: the weights lack {sorted(loading['missing_keys'])[:3]}")
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        return cls(model.to(device), temperature=temperature, dtype=dtype)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def score(self, micro_batch: MicroBatch, *, want_entropy: bool = False) -> TokenLogprobs:
        """Log-probs of the response tokens of a micro-batch at the sampling temperature, float32 [N]."""
        hidden_NH = self._hidden(micro_batch.input_ids, micro_batch.position_ids, micro_batch.attention_mask).flatten(
            0, 1
        )[micro_batch.predict_N]
        with self._autocast():
            return token_logprobs(
                hidden_NH,
                self.head.weight,
                micro_batch.targets_N,
                bias_V=self.head.bias,
                temperature=self.temperature,
                softcap=self.softcap,
                want_entropy=want_entropy,
            )

    def _hidden(self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        with self._autocast():
            output = self.decoder(
                input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare with the model's own logits, which may be scaled in ways a head's weights do not show."""
        ids = torch.arange(2, device=self.device).expand(1, 2)
        positions = torch.arange(2, device=self.device)[None]
        own = self.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)[:, 0]
        hidden_NH = self._hidden(ids, positions, None)[0]
        targets = torch.zeros(2, dtype=torch.int64, device=self.device)
        ours = token_logprobs(hidden_NH, self.head.weight, targets, bias_V=self.head.bias, softcap=self.softcap)
        if not torch.allclose(own, ours.logprobs_N, atol=5e-2 if self.dtype == torch.bfloat16 else 1e-4):
            raise ModelError(
                f"{type(self.model).__name__} computes its logits in a way that driftproof does not reproduce "
                "(a scaled head, perhaps); its log-probs would be wrong, so it is refused"
            )


def _is_full_attention(config: Any) -> bool:
    layer_types = getattr(config, "layer_types", None) or []
    return all(kind == "full_attention" for kind in layer_types) and not (
        getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    )
