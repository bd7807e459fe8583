"""The order of dispatch: shares and epochs by counting."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from driftproof.ledger.order import PromptOrder

shares = st.floats(1e-3, 0.999) | st.integers(1, 99).map(lambda percent: percent / 100)
counts = st.integers(1, 12)
seeds = st.integers(0, 2**32)


@given(seed=seeds, prompts=counts, recorded=counts, share=shares)
def test_each_kind_has_every_prompt_once_an_epoch(seed: int, prompts: int, recorded: int, share: float) -> None:
    order = PromptOrder(seed, prompts, recorded, share)
    dispatched = [order.prompt_of(n) for n in range(600)]
    live = [prompt for prompt in dispatched if prompt < prompts]
    other = [prompt - prompts for prompt in dispatched if prompt >= prompts]
    for kind, count in ((live, prompts), (other, recorded)):
        for first in range(0, len(kind) - count + 1, count):
            assert sorted(kind[first : first + count]) == list(range(count))
    again = PromptOrder(seed, prompts, recorded, share)
    assert [again.prompt_of(n) for n in reversed(range(600))] == dispatched[::-1]


@given(prompts=counts, recorded=counts, share=shares, length=st.integers(0, 10**9))
@example(prompts=1, recorded=1, share=0.29, length=100)
def test_the_share_is_exact_to_within_one_at_any_length(prompts: int, recorded: int, share: float, length: int) -> None:
    order = PromptOrder(0, prompts, recorded, share)
    assert order._recorded_before(length) == Fraction(str(share)) * length // 1
    turns = [order.prompt_of(length + n) >= prompts for n in range(200)]
    for n in range(len(turns) + 1):
        assert abs(sum(turns[:n]) - share * n) < 1 + 1e-6


def test_a_quarter_is_every_fourth() -> None:
    order = PromptOrder(0, 10, 3, 0.25)
    assert [order.prompt_of(n) >= 10 for n in range(12)] == [False, False, False, True] * 3


@given(seed=seeds, prompts=counts)
def test_without_a_share_the_order_is_that_of_old_ledgers(seed: int, prompts: int) -> None:
    order = PromptOrder(seed, prompts)
    for epoch in range(3):
        expected = np.random.default_rng([seed, epoch]).permutation(prompts)
        assert [order.prompt_of(epoch * prompts + n) for n in range(prompts)] == expected.tolist()


@given(seed=seeds, prompts=st.integers(0, 5), recorded=counts)
def test_a_trace_alone_has_the_order_of_live_prompts_alone(seed: int, prompts: int, recorded: int) -> None:
    alone, live = PromptOrder(seed, prompts, recorded, 1.0), PromptOrder(seed, recorded)
    assert [alone.prompt_of(n) - prompts for n in range(50)] == [live.prompt_of(n) for n in range(50)]


def test_the_seed_decides_the_recorded_order_too() -> None:
    orders = {tuple(PromptOrder(seed, 20, 20, 0.5).prompt_of(2 * n + 1) for n in range(20)) for seed in range(5)}
    assert len(orders) == 5
