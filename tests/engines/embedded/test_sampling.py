import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from driftproof.engines.embedded.sampling import RowSettings, adjust, draw, sample, streams, uniforms

LARGEST_UNIFORM = 1 - 2**-24


def settings_of(rows: list[tuple[float, int, float]], vocabulary: int) -> RowSettings:
    """Rows of (temperature, top_k, top_p)."""
    temperature, top_k, top_p = zip(*rows, strict=True)
    return RowSettings.of(
        np.array(temperature, np.float32),
        np.array(top_k, np.int64),
        np.array(top_p, np.float32),
        vocabulary=vocabulary,
        device=torch.device("cpu"),
    )


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The distribution of one row, float64 [V], written out step by step."""
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    scaled = (logits - logits.max()) / temperature
    chance = np.exp(scaled) / np.exp(scaled).sum()
    order = np.argsort(-chance, kind="stable")
    if top_k:
        chance[order[top_k:]] = 0
    chance /= chance.sum()
    reached = 0.0
    for token in order:
        if reached >= top_p and top_p < 1:
            chance[token] = 0
        reached += chance[token]
    return chance / chance.sum()


rows_strategy = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
        st.integers(0, 9),
        st.sampled_from([0.05, 0.3, 0.55, 0.9, 1.0]),
    ),
    min_size=1,
    max_size=5,
)
# Distinct logits, well apart: which token is cut must not hang on rounding.
logits_strategy = st.permutations([x * 0.37 for x in range(-4, 4)])


@given(rows_strategy, st.data())
def test_adjusted_logits_give_the_distribution_written_out_by_hand(rows, data):
    logits = np.array([data.draw(logits_strategy) for _ in rows])
    got = adjust(torch.tensor(logits, dtype=torch.float32), settings_of(rows, 8)).softmax(-1).numpy()
    expected = np.array([reference(row, *setting) for row, setting in zip(logits, rows, strict=True)])
    np.testing.assert_allclose(got, expected, atol=1e-6)


@given(rows_strategy, st.data())
def test_excluded_tokens_are_never_drawn_and_logprobs_are_those_of_the_distribution(rows, data):
    logits = np.array([data.draw(logits_strategy) for _ in rows])
    uniform = np.array([data.draw(st.floats(0, LARGEST_UNIFORM, width=32)) for _ in rows], np.float32)
    tokens, logprobs = sample(
        torch.tensor(logits, dtype=torch.float32), settings_of(rows, 8), uniform, want_logprobs=True
    )
    expected = np.array([reference(row, *setting) for row, setting in zip(logits, rows, strict=True)])
    chance = expected[np.arange(len(rows)), tokens.numpy()]
    assert (chance > 0).all()
    assert logprobs is not None
    assert logprobs.dtype == torch.float32
    np.testing.assert_allclose(logprobs.numpy(), np.log(chance), atol=1e-5)
    assert (logprobs <= 0).all()


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0, 0, 1e-30, 1e-9, 1e-3, 0.2, 1])),
    st.one_of(st.floats(0, LARGEST_UNIFORM, width=32), st.just(LARGEST_UNIFORM), st.sampled_from([0.0, 1.0])),
)
def test_draw_never_picks_a_token_of_probability_0(weights, uniform):
    if not weights.any():
        weights[0] = 1
    probabilities = torch.tensor(weights / weights.sum())[None]
    token = int(draw(probabilities, torch.tensor([uniform], dtype=torch.float32)))
    assert 0 <= token < len(weights)
    assert probabilities[0, token] > 0


def test_draw_inverts_the_cumulative_distribution():
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(5, -1)
    tokens = draw(probabilities, torch.tensor([0.0, 0.24, 0.25, 0.74, 0.75]))
    assert tokens.tolist() == [0, 0, 2, 2, 3]


def test_frequencies_match_the_distribution():
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)).expand(40_000, -1)
    settings = settings_of([(0.8, 12, 0.9)] * 40_000, 30)
    uniform = uniforms(streams(5, np.arange(40_000)), np.zeros(40_000, np.int64))
    tokens, _ = sample(logits, settings, uniform, want_logprobs=False)
    expected = reference(logits[0].double().numpy(), 0.8, 12, 0.9) * 40_000
    counts = np.bincount(tokens.numpy(), minlength=30)
    kept = expected > 0
    assert not counts[~kept].any()
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_a_row_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 50, generator=generator) * 2
    rows = [(1.0, 0, 1.0), (0.0, 0, 1.0), (0.5, 5, 1.0), (1.0, 0, 0.4), (2.0, 9, 0.6), (1.0, 0, 1.0)]
    uniform = np.array([0.1, 0.9, 0.3, 0.999, 0.5, 0.77], np.float32)
    together, logprobs = sample(logits, settings_of(rows, 50), uniform, want_logprobs=True)
    assert logprobs is not None
    for i, row in enumerate(rows):
        alone, logprob = sample(logits[i : i + 1], settings_of([row], 50), uniform[i : i + 1], want_logprobs=True)
        assert logprob is not None
        assert alone.item() == together[i].item()
        assert logprob.item() == pytest.approx(logprobs[i].item(), abs=1e-6)


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0), (0.0, 0, 1.0), (0.7, 3, 0.5)])
@pytest.mark.parametrize("others", [(1.0, 0, 1.0), (0.0, 0, 1.0)])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_is_marked_and_the_others_are_not(setting, others, poison):
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
    logits[1, 4] = poison
    tokens, logprobs = sample(
        logits, settings_of([others, setting, others], 7), np.full(3, 0.5, np.float32), want_logprobs=True
    )
    assert (tokens == 7).tolist() == [False, True, False]
    assert logprobs is not None
    assert logprobs[[0, 2]].isfinite().all()


def test_greedy_takes_the_largest_logit_with_logprob_0_in_any_company():
    logits = torch.tensor([[0.1, 3.0, 2.0], [5.0, 1.0, 1.0]])
    uniform = np.array([0.99, 0.0], np.float32)
    for rows in ([(0.0, 0, 1.0)] * 2, [(0.0, 2, 0.5), (1.0, 1, 1.0)]):
        tokens, logprobs = sample(logits, settings_of(rows, 3), uniform, want_logprobs=True)
        assert tokens.tolist() == [1, 0]
        assert logprobs is not None
        assert logprobs.tolist() == [0, 0]


def test_extreme_settings_stay_finite():
    logits = torch.tensor([[40.0, 39.0, -80.0]] * 3, dtype=torch.bfloat16)
    rows = [(1e-30, 0, 1.0), (1e-60, 0, 1.0), (1.0, 0, 1e-60)]
    tokens, logprobs = sample(logits, settings_of(rows, 3), np.full(3, 0.999, np.float32), want_logprobs=True)
    assert tokens.tolist() == [0, 0, 0]
    assert logprobs is not None
    assert logprobs.tolist() == [0, 0, 0]


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function.__name__.split(".")[0])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("want", [True, False])
def test_logprobs_are_computed_only_when_wanted(want):
    with _Calls() as calls:
        _, logprobs = sample(
            torch.randn(2, 5),
            settings_of([(1.0, 0, 1.0), (0.5, 2, 0.9)], 5),
            np.zeros(2, np.float32),
            want_logprobs=want,
        )
    assert (logprobs is not None) == want
    assert ("_log_softmax" in calls.names) == want
    assert "_softmax" in calls.names


def test_uniforms_are_uniform_and_depend_on_seed_sample_and_position_alone():
    stream = streams(11, np.arange(200))
    grid = np.stack([uniforms(stream, np.full(200, t)) for t in range(100)])
    assert grid.dtype == np.float32
    assert grid.min() >= 0
    assert grid.max() <= LARGEST_UNIFORM
    assert len(np.unique(grid)) > 19_900
    counts = np.histogram(grid, bins=50, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 49 + 4 * math.sqrt(98)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(uniforms(streams(11, np.array([7])), np.array([3])), grid[3, 7:8])
    assert not np.isin(uniforms(streams(12, np.arange(200)), np.zeros(200, np.int64)), grid[0]).any()


def test_any_integer_is_a_seed():
    values = [float(uniforms(streams(seed, np.array([0])), np.array([0]))[0]) for seed in (-1, 0, 1, 2**64 + 1, 2**200)]
    assert values[2] == values[3]
    assert len(set(values)) == 3 + (values[4] not in values[:3])
