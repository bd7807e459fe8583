"""Attention for decoding: with one query token, grouped-query attention reads keys and values once.

Guarantees: the function registered as `IMPLEMENTATION` computes what transformers' `sdpa` computes, in every use of the
model; only a single query token takes another way.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "driftproof_decode"


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

    At Q = 1 the H / KV queries that share a key head become the query length of one call, so that keys and values are
    never repeated; elsewhere transformers' own function runs.
    """
    batch, heads, queries, dim = query.shape
    if queries > 1 or kwargs.get("position_bias") is not None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], dim)
    attended = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(IMPLEMENTATION, grouped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
