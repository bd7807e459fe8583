import pytest
import torch
from torch import nn
from transformers.masking_utils import sliding_window_causal_mask_function

from driftproof.engines.embedded.attention import IMPLEMENTATION, grouped_attention, row_mask

from ..tiny import CONFIGS, VOCABULARY, tiny_model


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("queries", [1, 5])
def test_equals_attention_over_repeated_heads(heads, key_heads, masked, queries):
    generator = torch.Generator().manual_seed(heads)
    query = torch.randn(3, heads, queries, 8, generator=generator)
    key = torch.randn(3, key_heads, 5, 8, generator=generator)
    value = torch.randn(3, key_heads, 5, 6, generator=generator)
    mask = torch.ones(3, 1, queries, 5, dtype=torch.bool).tril(5 - queries) if masked or queries > 1 else None
    if masked and mask is not None:
        mask[1, :, :, 0] = queries > 1
    module = nn.Module()
    module.num_key_value_groups = heads // key_heads

    got, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)

    repeated_key, repeated_value = (x.repeat_interleave(heads // key_heads, dim=1) for x in (key, value))
    scores = query @ repeated_key.transpose(2, 3) * 0.3
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ repeated_value).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize(("softcap", "sunk"), [(2.0, False), (None, True), (2.0, True)])
def test_caps_scores_and_lets_sinks_take_their_share(queries, softcap, sunk):
    generator = torch.Generator().manual_seed(queries)
    query = torch.randn(3, 4, queries, 8, generator=generator) * 3
    key, value = (torch.randn(3, 2, 7, width, generator=generator) for width in (8, 6))
    mask = torch.ones(3, 1, queries, 7, dtype=torch.bool).tril(7 - queries)
    mask[1, :, :, :2] = False
    sinks = torch.randn(4, generator=generator) if sunk else None
    got, _ = grouped_attention(nn.Module(), query, key, value, mask, scaling=0.5, softcap=softcap, s_aux=sinks)

    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp()[:, None, None])
    expected = (weights / total @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_masks_are_of_rows_at_positions_of_their_own():
    positions = torch.tensor([5, 0, 3])
    window = sliding_window_causal_mask_function(3)
    mask = row_mask(3, 1, 6, positions, mask_function=window)
    assert mask is not None
    assert mask.shape == (3, 1, 1, 6)
    seen = [row.nonzero()[:, 0].tolist() for row in mask[:, 0, 0]]
    assert seen == [[3, 4, 5], [0], [1, 2, 3]]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_computes_the_same_with_it_in_every_use(architecture):
    model = tiny_model(architecture)
    ids = torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    padding = torch.ones(3, 9, dtype=torch.int64)
    padding[1, :4] = 0
    uses = [{}, {"attention_mask": padding}]
    with torch.no_grad():
        expected = [model(input_ids=ids, **use).logits for use in uses]
        model.set_attn_implementation(IMPLEMENTATION)
        got = [model(input_ids=ids, **use).logits for use in uses]
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1][padding.bool()], expected[1][padding.bool()], atol=1e-5, rtol=1e-5)
