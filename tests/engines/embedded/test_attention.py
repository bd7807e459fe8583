import pytest
import torch
from torch import nn

from driftproof.engines.embedded.decode import IMPLEMENTATION, grouped_attention

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
