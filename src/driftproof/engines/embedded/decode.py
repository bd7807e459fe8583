"""Forward passes of the embedded engine: prompts into the cache, and one more token for every row.

Guarantees: what is computed for a row depends on its tokens and the weights alone, up to float rounding; a model that
would be decoded wrongly is refused.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from driftproof.engines.embedded.attention import IMPLEMENTATION
from driftproof.engines.embedded.cache import SlotCache
from driftproof.errors import EngineError
from driftproof.types import Tokens
from driftproof.weights.models import ATTENTION, UNLIMITED, attention_reach, longest_context

PREFILL_TOKENS = 8192
"""Prompt tokens, padding included, in one forward pass."""
_INSTEAD = "have its responses written by a server: --engine.name vllm --engine.launch true, or --engine.url"
_CLOSE = 1e-2
"""Logits of a small model, in float32, that rounding may be apart."""


class Decoder:
    """A model and the key-value cache of its `rows` rows."""

    def __init__(self, model: PreTrainedModel, *, rows: int, max_length: int | None, prefill_tokens: int) -> None:
        """Take over `model`; EngineError where it cannot be decoded right, or not to `max_length`."""
        config = model.config.get_text_config()
        check_model(model)
        self.model = model
        self.max_length = _check_length(config, max_length)
        self.device: torch.device = model.device
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.cache = SlotCache(layers=config.num_hidden_layers, rows=rows, limit=self.max_length)
        self._attends_to_all = attention_reach(config) == UNLIMITED
        self._prefill_tokens = prefill_tokens
        model.eval()
        # A model with attention of its own keeps it, and adds the masks that it is given to its scores.
        self._adds_masks = not model._can_set_attn_implementation()
        if not self._adds_masks:
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
        output = self.model(
            input_ids=self._tensor(tokens)[:, None],
            position_ids=positions[:, None],
            attention_mask=self._mask(positions, longest),
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self, positions: Tensor, longest: int) -> Tensor | None:
        """[B, 1, 1, longest] of a decode step; None where a model with windows makes the masks of each kind of layer
        itself, from what the cache says of the rows."""
        if not self._attends_to_all:
            return None
        seen = (torch.arange(longest, device=self.device) <= positions[:, None])[:, None, None]
        if not self._adds_masks:
            return seen
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill_(
            ~seen, torch.finfo(self.model.dtype).min
        )

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


def check_model(model: PreTrainedModel) -> None:
    """Refuse what would be decoded wrongly, as far as its class and configuration tell; EngineError."""
    config, problem = model.config.get_text_config(), ""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        problem = "takes no position_ids, by which this engine decodes rows of unequal length"
    elif not (model._can_set_attn_implementation() or attention_reach(config) == UNLIMITED):
        problem = "computes windows in a way of its own"
    elif kinds := set(getattr(config, "layer_types", None) or ()) - ATTENTION:
        problem = f"has {', '.join(sorted(kinds))} layers; this engine decodes {', '.join(sorted(ATTENTION))}"
    if problem:
        raise EngineError(f"{type(model).__name__} {problem}; {_INSTEAD}")


def _check_length(config: Any, wanted: int | None) -> int:
    """The context to use: the wanted one or the model's, within what the model can do."""
    longest = longest_context(config)
    length = longest if wanted is None else wanted
    if length is None:
        raise EngineError("the model's configuration names no max_position_embeddings; give max_length")
    if length < 2 or (longest is not None and length > longest):
        raise EngineError(f"max_length is {length}; it must be at least 2 and at most the model's {longest} positions")
    return int(length)


@torch.no_grad()
def check_decoding(model: PreTrainedModel) -> None:
    """Decode a few tokens of a small model, three rows at a time, and compare with its own forward pass.

    Raises:
        EngineError: the logits differ, or cannot be computed. The model's attention is replaced, as by `Decoder`.
    """
    name, generator = type(model).__name__, np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    most = min(longest_context(model.config.get_text_config()) or 14, 14)
    sequences = [generator.integers(0, vocabulary, length).astype(np.int32) for length in (most, most - 2, most - 5)]
    try:
        model.eval()
        own = [
            model(input_ids=torch.from_numpy(ids[None].astype(np.int64)), use_cache=False).logits[0]
            for ids in sequences
        ]
        decoder = Decoder(model, rows=3, max_length=None, prefill_tokens=4)
        lengths = np.array([most - 6, most - 8, most - 11])
        logits = decoder.read([ids[:length] for ids, length in zip(sequences, lengths, strict=True)], 0)
        worst = 0.0
        for _ in range(6):
            expected = torch.stack([of_row[length - 1] for of_row, length in zip(own, lengths, strict=True)])
            worst = max(worst, float((logits - expected).abs().max()))
            tokens = np.array([ids[length] for ids, length in zip(sequences, lengths, strict=True)], dtype=np.int64)
            logits = decoder.next_logits(tokens, lengths)
            lengths = lengths + 1
    except EngineError:
        raise
    except Exception as error:
        # A model of a kind that nobody has tried may raise anything.
        raise EngineError(f"{name} cannot be decoded by this engine: {error}; {_INSTEAD}") from error
    if not worst < _CLOSE:
        raise EngineError(
            f"{name} is not decoded right by this engine, whose logits differ by {worst:.2g} from the model's own; "
            f"{_INSTEAD}"
        )
