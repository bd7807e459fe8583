"""A small stand-in for a model: of its class and configuration, with fewer and narrower layers and random weights.

It shows in a fraction of a second whether an architecture can be decoded and trained, before any weights are read.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

MOST_PARAMETERS = 120_000_000
"""Parameters of a stand-in; an architecture that cannot be made so small has none."""
_SMALL = {
    r"vocab_size(_per_layer_input)?": 64,
    r"\w*intermediate_size\w*|ffn_dim|n_inner|ffn_hidden_size": 64,
    r"\w*(window|window_size|chunk_size)": 4,
}
"""The largest value of settings by their names; windows so small that a few tokens are beyond them."""
_FEW_EXPERTS = {r"num_experts|num_local_experts|n_routed_experts|moe_num_experts": 4, r"num_experts_per_tok|moe_k": 2}
_FEW_EXPERTS |= {r"n_group|topk_group": 1}
_HEADS, _WIDTH = 2, 16
"""Key heads, and numbers of a head."""


def stand_in(config: Any) -> Any | None:
    """A causal language model in float32 like the one of a transformers configuration, or None where there is none."""
    for shrinks in _SHRINKS:
        # What a configuration makes impossible raises whatever its model raises; then less is made smaller.
        with suppress(Exception):
            if (model := _build(_shrunk(config, shrinks))) is not None:
                return model
    return None


def _shrunk(config: Any, shrinks: Sequence[Callable[[Any], None]]) -> Any:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    _limit(text, _SMALL)
    _set(text, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    for shrink in shrinks:
        # A configuration that has no such sizes, or one for each layer, stays as large as it is.
        with suppress(Exception):
            shrink(text)
    for name in getattr(small, "sub_configs", {}):
        if (part := getattr(small, name, None)) is not None and part is not text:
            _set(part, num_hidden_layers=1, depth=1)
    return small


def _limit(config: Any, limits: dict[str, int]) -> None:
    """Lower the settings that match a pattern, numbers and lists of them, to its value."""
    for pattern, most in limits.items():
        for name, value in config.to_dict().items():
            if re.fullmatch(pattern, name) and type(value) is int:
                _set(config, **{name: min(value, most)})
            elif re.fullmatch(pattern, name) and isinstance(value, list) and {type(size) for size in value} == {int}:
                _set(config, **{name: [min(size, most) for size in value]})


def _set(config: Any, **values: Any) -> None:
    """Set what a configuration has and allows; it checks each value by itself."""
    for name, value in values.items():
        with suppress(Exception):
            if hasattr(config, name):
                setattr(config, name, value)


def _shorten(config: Any) -> None:
    """Keep the first layers, with all their kinds among them; where some read the cache of others, keep all."""
    if getattr(config, "num_kv_shared_layers", None):
        return
    layers, dense = config.num_hidden_layers, getattr(config, "first_k_dense_replace", None) or 0
    lists = {name: value for name, value in config.to_dict().items() if isinstance(value, list)}
    kinds = {name: values for name, values in lists.items() if len(values) == layers}
    firsts = [values.index(kind) for values in kinds.values() for kind in values if isinstance(kind, int | str)]
    kept = min(layers, 1 + max(1, dense, *firsts))
    _set(config, num_hidden_layers=kept, **{name: value[:kept] for name, value in kinds.items()})


def _narrow_heads(config: Any, most: int) -> None:
    """Keep how many heads share a key head; `most` numbers in each."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = min(getattr(config, "head_dim", None) or hidden // heads, most)
    if getattr(config, "rotary_dim", None):
        width = max(width, config.rotary_dim)
    kept = min(key_heads, _HEADS)
    queries = kept * (heads // key_heads)
    narrow = queries * width
    equal = [name for name in ("word_embed_proj_dim", "embedding_size") if getattr(config, name, None) == hidden]
    _set(config, num_attention_heads=queries, hidden_size=narrow, **dict.fromkeys(equal, narrow))
    for name, value in (("num_key_value_heads", kept), ("head_dim", width)):
        # Latent attention has widths of its own, which no head's width says.
        if getattr(config, name, None) is not None and not (name == "head_dim" and _is_latent(config)):
            _set(config, **{name: value})


def _is_latent(config: Any) -> bool:
    return getattr(config, "kv_lora_rank", None) is not None


def _lose_experts(config: Any) -> None:
    _limit(config, _FEW_EXPERTS)


_SHRINKS: tuple[tuple[Callable[[Any], None], ...], ...] = (
    (_shorten, _lose_experts, partial(_narrow_heads, most=_WIDTH)),
    (_shorten, partial(_narrow_heads, most=1 << 30)),
    (_shorten,),
)
"""Ways to make a configuration smaller, from the most to the least that is changed."""


def _build(config: Any) -> Any | None:
    """The model, or None where it is too large."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomize(model)
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    return model


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw weights so wide that a wrong position, mask or scale shows in the logits."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
