"""Forward passes of the embedded engine: prompts into the cache, and one more token for every row.

Guarantees: what is computed for a row depends on its tokens and the weights alone, up to float rounding; a model that
would be decoded wrongly is refused; the attention function `IMPLEMENTATION` computes what transformers' `sdpa` does.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from driftproof.engines.embedded.cache import SlotCache
from driftproof.errors import EngineError
from driftproof.types import Tokens

PREFILL_TOKENS = 8192
"""Prompt tokens, padding included, in one forward pass."""
IMPLEMENTATION = "driftproof_decode"
"""Name of `grouped_attention` in transformers."""


class Decoder:
    """A model and the key-value cache of its `rows` rows."""

    def __init__(self, model: PreTrainedModel, *, rows: int, max_length: int | None, prefill_tokens: int) -> None:
        """Take over `model`; EngineError where it cannot be decoded right, or not to `max_length`."""
        config = model.config.get_text_config()
        _check_model(model, config)
        self.model = model
        self.max_length = _check_length(config, max_length)
        self.device: torch.device = model.device
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.cache = SlotCache(layers=config.num_hidden_layers, rows=rows, limit=self.max_length)
        self._prefill_tokens = prefill_tokens
        model.eval()
        model.set_attn_implementation(IMPLEMENTATION)

    def read(self, prompts: Sequence[Tokens], first: int) -> Tensor:
        """Write keys and values of `prompts`, longest first, into rows from `first` on.

        Returns the logits [B, V] that follow each prompt. One forward pass reads as many prompts as fit the token
        budget when padded, or a part of a longer one.
        """
        logits, start = [], 0
        while start < len(prompts):
            stop = start + max(1, self._prefill_tokens // len(prompts[start]))
            logits.append(self._read(prompts[start:stop], first + start))
            start = stop
        return torch.cat(logits)

    def next_logits(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
        """Read one token of each of rows [0, B) behind its `lengths` positions; returns the logits [B, V] after it."""
        longest = int(lengths.max()) + 1
        positions = self._tensor(lengths)
        self.cache.write_next(positions, longest)
        seen = torch.arange(longest, device=self.device) <= positions[:, None]
        output = self.model(
            input_ids=self._tensor(tokens)[:, None],
            position_ids=positions[:, None],
            attention_mask=seen[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _read(self, prompts: Sequence[Tokens], first: int) -> Tensor:
        """`read` for prompts that are read together."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        ids = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        input_ids, last = self._tensor(ids), self._tensor(lengths - 1)
        for start in range(0, longest, self._prefill_tokens):
            stop = min(longest, start + self._prefill_tokens)
            self.cache.write_span(first, first + len(prompts), start, stop)
            output = self.model(
                input_ids=input_ids[:, start:stop],
                position_ids=torch.arange(start, stop, device=self.device).expand(len(prompts), -1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=(last - start).clamp(max=stop - start - 1)[:, None],
            )
        logits: Tensor = output.logits[:, 0]
        return logits

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values.copy()).to(self.device)


def _check_model(model: PreTrainedModel, config: Any) -> None:
    """Refuse what would be decoded wrongly."""
    name = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise EngineError(f"{name} takes no position_ids; this engine decodes rows of unequal length by them")
    problem = ""
    if getattr(config, "attn_logit_softcapping", None) is not None or not model._supports_sdpa:
        problem = "needs an attention that torch's scaled_dot_product_attention does not compute"
    elif kinds := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        problem = f"has {', '.join(sorted(kinds))} layers; this engine decodes full attention only"
    if problem:
        raise EngineError(f"{name} {problem}; serve it with vLLM or SGLang")


def _check_length(config: Any, wanted: int | None) -> int:
    """The context to use: the wanted one or the model's, within what the model can do."""
    longest = getattr(config, "max_position_embeddings", None)
    length = longest if wanted is None else wanted
    if length is None:
        raise EngineError("the model's configuration names no max_position_embeddings; give max_length")
    if length < 2 or (longest is not None and length > longest):
        raise EngineError(f"max_length is {length}; it must be at least 2 and at most the model's {longest} positions")
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if slides else None
    if window is not None and length > window:
        raise EngineError(
            f"max_length is {length}, but the model's attention slides beyond {window} tokens, which this engine does "
            f"not decode; give max_length={window} or less"
        )
    return int(length)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from `query` [B, H, Q, D] to `key` [B, KV, L, D] and `value` [B, KV, L, Dv]; returns [B, Q, H, Dv].

    At Q = 1 the H / KV queries that share a key head are the query length of one call: no key or value is repeated.
    """
    batch, heads, queries, dim = query.shape
    if queries > 1 or kwargs.get("position_bias") is not None:
        kwargs["scaling"] = scaling
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], dim)
    attended = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(IMPLEMENTATION, grouped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
