"""The attention of the embedded engine, which transformers knows by the name `IMPLEMENTATION`.

Guarantees: it computes what transformers' own does, capped scores and attention sinks included; the masks that a model
makes for itself (causal, sliding, chunked) hold for rows that stand at positions of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

IMPLEMENTATION = "driftproof_decode"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from `query` [B, H, Q, D] to `key` [B, KV, L, D] and `value` [B, KV, L, Dv]; returns [B, Q, H, Dv].

    At Q = 1 the H / KV queries that share a key head are the query length of one call: no key or value is repeated.

    Args:
        softcap: largest score, which `softcap * tanh(score / softcap)` approaches.
        s_aux: [H], the score of each head's sink, which takes its share of the attention and gives nothing.
    """
    batch, heads, queries, dim = query.shape
    if softcap is not None or s_aux is not None:
        return _explicit_attention(query, key, value, attention_mask, scaling, softcap, s_aux), None
    if queries > 1 or kwargs.get("position_bias") is not None:
        kwargs["scaling"] = scaling
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], dim)
    attended = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.reshape(batch, 1, heads, value.shape[-1]), None


def _explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`grouped_attention` with scores that are held, as caps and sinks need them."""
    batch, heads, queries, dim = query.shape
    key_heads, length = key.shape[1:3]
    grouped = query.reshape(batch, key_heads, heads // key_heads * queries, dim)
    scores = (grouped @ key.transpose(2, 3) * (dim**-0.5 if scaling is None else scaling)).float()
    scores = scores.view(batch, heads, queries, length)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(queries, length, dtype=torch.bool, device=query.device).tril(length - queries)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, heads, 1, 1).expand(batch, -1, queries, -1)], dim=-1)
    weights = scores.softmax(-1)[..., :length].to(value.dtype)
    attended = weights.view(batch, key_heads, heads // key_heads * queries, length) @ value
    return attended.view(batch, heads, queries, value.shape[-1]).transpose(1, 2)


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """bool [B, 1, Q, L], or None where plainly causal; transformers asks for the masks of a model here.

    In a decode step the cache gives the position of each row's one token, int64 [B], as `q_offset`.
    """
    if not isinstance(q_offset, Tensor):
        mask: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, device=device, **kwargs
        )
        return mask
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    keys = torch.arange(kv_length, device=device)[None, None, None, :] + kv_offset
    return mask_function(rows, torch.zeros_like(rows), q_offset[:, None, None, None], keys)


AttentionInterface.register(IMPLEMENTATION, grouped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, row_mask)
