"""A small stand-in for a model: of its class and configuration, with fewer and narrower layers and random weights.

It shows in a fraction of a second whether an architecture can be decoded and trained, before any weights are read.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import nn

MOST_PARAMETERS = 30_000_000
"""Parameters of a stand-in; an architecture that cannot be made so small has none."""
_VOCABULARY, _WIDTH, _KEY_HEADS, _WINDOW = 64, 64, 2, 4
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")
_WINDOWS = ("sliding_window", "attention_chunk_size")


def stand_in(config: Any) -> Any | None:
    """A causal language model in float32 like the one of a transformers configuration, or None where there is none."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    _set(text, vocab_size=min(text.vocab_size, _VOCABULARY), bos_token_id=None, eos_token_id=None, pad_token_id=None)
    for names, most in ((_WIDTHS, _WIDTH), (_WINDOWS, _WINDOW)):
        sizes = {name: getattr(text, name, None) for name in names}
        _set(text, **{name: min(size, most) for name, size in sizes.items() if isinstance(size, int)})
    for shrink in (_shorten, _narrow_heads):
        # A configuration that has no such sizes stays as large as it is.
        with suppress(AttributeError, TypeError, ZeroDivisionError):
            shrink(text)
    try:
        return _build(small)
    except Exception:  # noqa: BLE001 (a configuration that cannot be made small raises whatever its model raises)
        return None


def _set(config: Any, **values: Any) -> None:
    """Set what a configuration allows; it checks each value by itself."""
    for name, value in values.items():
        with suppress(ValueError, TypeError, AttributeError):
            setattr(config, name, value)


def _shorten(config: Any) -> None:
    """Keep the first layers, with all their kinds among them."""
    layers, dense = config.num_hidden_layers, getattr(config, "first_k_dense_replace", None) or 0
    lists = {name: value for name, value in config.to_dict().items() if isinstance(value, list)}
    kinds = {name: values for name, values in lists.items() if len(values) == layers}
    firsts = [values.index(kind) for values in kinds.values() for kind in values if isinstance(kind, int | str)]
    kept = min(layers, 1 + max(1, dense, *firsts))
    _set(config, num_hidden_layers=kept, **{name: value[:kept] for name, value in kinds.items()})


def _narrow_heads(config: Any) -> None:
    """Keep the width of a head, and how many share a key head; latent attention has widths of its own."""
    if getattr(config, "kv_lora_rank", None) is not None:
        return
    heads, hidden = config.num_attention_heads, config.hidden_size
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or hidden // heads
    kept = min(key_heads, _KEY_HEADS)
    narrow = kept * (heads // key_heads) * width
    equal = [name for name in ("word_embed_proj_dim", "embedding_size") if getattr(config, name, None) == hidden]
    _set(config, num_attention_heads=kept * (heads // key_heads), hidden_size=narrow, **dict.fromkeys(equal, narrow))
    if getattr(config, "num_key_value_heads", None) is not None:
        _set(config, num_key_value_heads=kept)


def _build(config: Any) -> Any | None:
    """The model, or None where it is too large."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize(model)
    return model.eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw weights so wide that a wrong position, mask or scale shows in the logits."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
