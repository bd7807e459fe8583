import math
import statistics
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.metrics.health import step_health
from driftproof.objectives import OBJECTIVES, Responses, build
from driftproof.types import Channel


@dataclass(frozen=True)
class Told:
    """One response, told token by token."""

    advantage: float
    logprobs: list[float]
    behavior: list[float] | None = None
    gradients: list[float] | None = None


def make_batch(told: list[Told]) -> Responses:
    lengths_R = torch.tensor([len(one.logprobs) for one in told], dtype=torch.int64)
    behavior = [one.behavior for one in told if one.behavior is not None]
    return Responses(
        logprobs_N=flat([one.logprobs for one in told]),
        segment_N=torch.arange(len(told)).repeat_interleave(lengths_R),
        lengths_R=lengths_R,
        advantages_R=flat([[one.advantage] for one in told]),
        group_R=torch.zeros_like(lengths_R),
        total_responses=len(told),
        total_tokens=int(lengths_R.sum()),
        behavior_logprobs_N=flat(behavior) if len(behavior) == len(told) else None,
    )


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def gradients_of(told: list[Told]) -> torch.Tensor:
    return flat([one.gradients or [] for one in told])


def test_scales_by_hand():
    told = [Told(1.0, [-1.0, -3.0]), Told(0.5, [-0.5]), Told(-2.0, [-4.0]), Told(0.0, [-0.25])]
    batch = replace(make_batch(told), entropy_N=torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]))
    assert step_health(batch) == pytest.approx(
        {
            "health/nll": (2 + 0.5 + 4 + 0.25) / 4,
            "health/positive_nll": (1.0 * 2 + 0.5 * 0.5) / 1.5,
            "health/negative_nll": 4.0,
            "health/scale_imbalance": 4.0 / 1.5,
            "health/positive_mass": (1.0 * 2 + 0.5 * 0.5) / 4,
            "health/negative_mass": 2.0 * 4 / 4,
            "health/balance": (1.0 * 2 + 0.5 * 0.5 - 2.0 * 4) / 4,
            "health/positive_share": 0.5,
            "health/negative_share": 0.25,
            # The most certain response has no advantage, so that it has no weight either.
            "health/largest_inverse_nll": 2.0,
            "health/smallest_inverse_nll": 0.25,
            "health/entropy": 2.0,
        }
    )


def test_gradient_mass_by_hand():
    half, tenth = math.log(0.5), math.log(0.1)
    told = [
        Told(1.0, [half, tenth], gradients=[-1.0, -2.0]),
        Told(-1.0, [half], gradients=[3.0]),
        Told(0.0, [half], gradients=[9.0]),
    ]
    found = step_health(make_batch(told), gradients_of(told), temperature=0.5)
    assert found["health/positive_gradient_mass"] == pytest.approx((1 * 0.5 + 2 * 0.9) * 2 / 0.5)
    assert found["health/negative_gradient_mass"] == pytest.approx(3 * 0.5 * 2 / 0.5)
    assert found["health/gradient_imbalance"] == pytest.approx(1.5 / 2.3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gradient_mass_is_that_of_the_logits(temperature: float):
    """Through a real softmax, with the loss of `naive`: the norm that autograd finds."""
    logits_NV = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    logprobs_N = (logits_NV / temperature).log_softmax(1)[:, 2]
    logprobs_N.retain_grad()
    batch = replace(make_batch([Told(1.0, [-1.0] * 4), Told(-0.5, [-1.0] * 2)]), logprobs_N=logprobs_N)
    build("naive")(batch).loss.backward()
    found = step_health(batch, logprobs_N.grad, temperature=temperature)
    assert logits_NV.grad is not None
    assert found["health/positive_gradient_mass"] == pytest.approx(logits_NV.grad[:4].abs().sum().item())
    assert found["health/negative_gradient_mass"] == pytest.approx(logits_NV.grad[4:].abs().sum().item())


def test_drift_by_hand():
    ratios = [[1.0, 2.0], [0.5], [4.0, 0.25]]
    told = [Told(1.0, [-3.0] * len(row), [-3.0 - math.log(value) for value in row]) for row in ratios]
    found = step_health(make_batch(told))
    assert found["health/ratio_mean"] == pytest.approx(7.75 / 5)
    assert found["health/ratio_min"] == found["health/ratio_p05"] == pytest.approx(0.25)
    assert found["health/ratio_max"] == found["health/ratio_p95"] == pytest.approx(4.0)
    assert found["health/ratio_p50"] == pytest.approx(1.0)
    assert found["health/behavior_kl"] == pytest.approx(7.75 / 5 - 1)  # the logs add up to 0
    assert found["health/effective_sample_size"] == pytest.approx(7.75**2 / (5 * (1 + 4 + 0.25 + 16 + 0.0625)))
    # The products over the responses are 2, 0.5 and 1.
    assert found["health/sequence_effective_sample_size"] == pytest.approx(3.5**2 / (3 * 5.25))


def test_percentiles_cut_the_tails():
    found = step_health(make_batch([Told(0.0, [-1.0 - value / 100 for value in range(101)], [-1.0] * 101)]))
    percentiles = {0.05: "ratio_p05", 0.5: "ratio_p50", 0.95: "ratio_p95"}
    for share, name in percentiles.items():
        assert found[f"health/{name}"] == pytest.approx(math.exp(share - 1))


def responses_of(logprobs: st.SearchStrategy[float], slopes: st.SearchStrategy[float]) -> st.SearchStrategy[Told]:
    return st.builds(
        lambda advantage, tokens: Told(
            advantage,
            [own for own, _, _ in tokens],
            [other for _, other, _ in tokens],
            [slope for _, _, slope in tokens],
        ),
        st.sampled_from([0.0, 1.0, 0.25, -0.5, -2.0]),
        st.lists(st.tuples(logprobs, logprobs, slopes), max_size=4),
    )


def rounded(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda value: round(value, 9))


told_responses = responses_of(rounded(-30.0, 0.0), rounded(-3.0, 3.0))
extreme_responses = responses_of(st.floats(-1e6, 1e-3), st.floats(-1e30, 1e30))


def told_slowly(told: list[Told], temperature: float) -> dict[str, float]:
    """The table of the module, in plain Python."""
    found: dict[str, float] = {}
    nll = [-statistics.fmean(one.logprobs) if one.logprobs else 0.0 for one in told]
    trains = [1 / max(value, 1e-12) for one, value in zip(told, nll, strict=True) if one.advantage and one.logprobs]
    found["nll"] = statistics.fmean(nll)
    for sign, name in ((1, "positive"), (-1, "negative")):
        pulls = [(abs(one.advantage), value) for one, value in zip(told, nll, strict=True) if sign * one.advantage > 0]
        found[f"{name}_share"] = len(pulls) / len(told)
        found[f"{name}_mass"] = sum(pull * value for pull, value in pulls) / len(told)
        if pulls:
            found[f"{name}_nll"] = found[f"{name}_mass"] * len(told) / sum(pull for pull, _ in pulls)
        found[f"{name}_gradient_mass"] = sum(
            abs(slope) * 2 * -math.expm1(value) / temperature
            for one in told
            if sign * one.advantage > 0
            for value, slope in zip(one.logprobs, one.gradients or [], strict=True)
        )
    found["balance"] = found["positive_mass"] - found["negative_mass"]
    if found.get("positive_nll", 0) > 0 and "negative_nll" in found:
        found["scale_imbalance"] = found["negative_nll"] / found["positive_nll"]
    if found["positive_gradient_mass"] > 0:
        found["gradient_imbalance"] = found["negative_gradient_mass"] / found["positive_gradient_mass"]
    if trains:
        found |= {"largest_inverse_nll": max(trains), "smallest_inverse_nll": min(trains)}
    moved = [[a - b for a, b in zip(one.logprobs, one.behavior or [], strict=True)] for one in told if one.logprobs]
    logs = sorted(min(max(value, -20.0), 20.0) for row in moved for value in row)
    if logs:
        ratios = [math.exp(value) for value in logs]
        found |= {"ratio_mean": statistics.fmean(ratios), "ratio_min": ratios[0], "ratio_max": ratios[-1]}
        found |= {f"ratio_p{share:02}": ratios[round(share / 100 * (len(ratios) - 1))] for share in (5, 50, 95)}
        found["behavior_kl"] = statistics.fmean(math.expm1(value) - value for value in logs)
        found["effective_sample_size"] = effective_share(ratios)
        found["sequence_effective_sample_size"] = effective_share([math.exp(sum(row)) for row in moved])
    return {f"health/{name}": value for name, value in found.items()}


def effective_share(weights: list[float]) -> float:
    largest = max(weights)
    scaled = [weight / largest for weight in weights]
    return sum(scaled) ** 2 / (len(scaled) * sum(weight**2 for weight in scaled))


@given(st.lists(told_responses, min_size=1, max_size=8), st.sampled_from([0.5, 1.0]))
def test_the_figures_are_those_of_the_table(told: list[Told], temperature: float):
    found = step_health(make_batch(told), gradients_of(told), temperature=temperature)
    expected = told_slowly(told, temperature)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.lists(told_responses, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_does_not_matter(told: list[Told], random):
    shuffled = random.sample(told, len(told))
    found = step_health(make_batch(told), gradients_of(told))
    again = step_health(make_batch(shuffled), gradients_of(shuffled))
    assert again.keys() == found.keys()
    assert again == pytest.approx(found, rel=1e-9, abs=1e-12)


@given(st.lists(told_responses, min_size=1, max_size=6))
def test_balance_is_the_naive_loss(told: list[Told]):
    batch = make_batch(told)
    assert step_health(batch)["health/balance"] == pytest.approx(build("naive")(batch).loss.item(), abs=1e-12)


@given(st.lists(told_responses, min_size=1, max_size=6), st.booleans(), st.sampled_from([0.0, 1e-2]))
def test_asympo_pulls_at_most_twice_its_advantages(told: list[Told], stable: bool, floor: float):
    batch = make_batch(told)
    batch.logprobs_N.requires_grad_()
    build("asympo", stable=stable, floor=floor)(batch).loss.backward()
    found = step_health(batch, batch.logprobs_N.grad)
    mass = found["health/positive_gradient_mass"] + found["health/negative_gradient_mass"]
    assert mass <= 2 * sum(abs(one.advantage) for one in told) / len(told) + 1e-12


def test_the_bound_of_asympo_is_reached_by_certain_responses():
    batch = make_batch([Told(1.0, [-1e-6, -1e-6]), Told(-1.0, [-1e-7])])
    batch.logprobs_N.requires_grad_()
    build("asympo", floor=0.0)(batch).loss.backward()
    found = step_health(batch, batch.logprobs_N.grad)
    assert found["health/positive_gradient_mass"] == pytest.approx(1.0, rel=1e-5)
    assert found["health/negative_gradient_mass"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_its_gradient_mass(name: str):
    told = [Told(1.0, [-1.0, -3.0], [-1.5, -2.0]), Told(-1.0, [-0.5], [-0.4]), Told(-0.5, [-2.0], [-2.0])]
    values_N = torch.zeros(4, dtype=torch.float64)
    batch = replace(make_batch(told), rewards_R=torch.tensor([1.0, 0.0, 0.0]), total_valid_responses=3)
    batch = replace(batch, values_N=values_N.requires_grad_() if name == "ppo" else None)
    batch.logprobs_N.requires_grad_()
    fields = {"horizon": 4} if OBJECTIVES[name].aggregation == "seq-mean-token-sum-norm" else {}
    objective = build(name, **fields)
    objective(batch).loss.backward()
    found = step_health(batch, batch.logprobs_N.grad)
    assert found["health/positive_gradient_mass"] > 0
    # Positives alone train, and a critic that knows nothing has nothing against a reward of 0.
    assert (found["health/negative_gradient_mass"] > 0) == (name not in ("rft", "ppo"))
    assert ("health/ratio_mean" in found) == (batch.behavior_logprobs_N is not None)
    assert Channel.BEHAVIOR_LOGPROBS not in objective.needs or "health/behavior_kl" in found


def test_without_drift_every_response_counts():
    told = [Told(1.0, [-1.0, -2.0], [-1.0, -2.0]), Told(-1.0, [-3.0], [-3.0])]
    found = step_health(make_batch(told))
    shares = ("ratio_mean", "ratio_min", "ratio_p50", "ratio_max", "effective_sample_size")
    assert {found[f"health/{name}"] for name in (*shares, "sequence_effective_sample_size")} == {1.0}
    assert found["health/behavior_kl"] == 0.0


def test_figures_without_data_are_left_out():
    assert step_health(make_batch([])) == {}
    found = step_health(make_batch([Told(1.0, [-1.0])]))
    assert found["health/positive_nll"] == found["health/nll"] == 1.0
    absent = (
        "negative_nll",
        "scale_imbalance",
        "entropy",
        "gradient_imbalance",
        "positive_gradient_mass",
        "ratio_mean",
    )
    assert not {f"health/{name}" for name in absent} & found.keys()
    certain = step_health(make_batch([Told(1.0, [0.0]), Told(-1.0, [-1.0])]))
    assert "health/scale_imbalance" not in certain
    assert all(math.isfinite(value) for value in certain.values())


def test_equal_rewards_pull_nowhere():
    told = [Told(0.0, [-1.0], [-2.0], [0.0]), Told(0.0, [-3.0], [-2.0], [0.0])]
    found = step_health(make_batch(told), gradients_of(told))
    assert found["health/nll"] == 2.0
    zero = ("balance", "positive_share", "negative_mass", "positive_gradient_mass", "negative_gradient_mass")
    assert [found[f"health/{name}"] for name in zero] == [0.0] * 5
    absent = ("positive_nll", "negative_nll", "gradient_imbalance", "largest_inverse_nll", "smallest_inverse_nll")
    assert not {f"health/{name}" for name in absent} & found.keys()


def test_empty_responses_are_counted_and_weigh_nothing():
    told = [Told(1.0, [-2.0], [-1.0], [-1.0]), Told(-1.0, [], [], [])]
    found = step_health(make_batch(told), gradients_of(told))
    assert found["health/nll"] == 1.0
    assert found["health/negative_share"] == 0.5
    assert found["health/largest_inverse_nll"] == found["health/smallest_inverse_nll"] == 0.5
    assert found["health/negative_gradient_mass"] == 0.0
    assert found["health/sequence_effective_sample_size"] == 1.0
    only_empty = replace(make_batch([Told(1.0, [], [], [])]), entropy_N=torch.zeros(0))
    assert step_health(only_empty, torch.zeros(0)) == {
        "health/nll": 0.0,
        "health/positive_nll": 0.0,
        "health/positive_mass": 0.0,
        "health/negative_mass": 0.0,
        "health/balance": 0.0,
        "health/positive_share": 1.0,
        "health/negative_share": 0.0,
        "health/positive_gradient_mass": 0.0,
        "health/negative_gradient_mass": 0.0,
    }


@given(st.lists(extreme_responses, max_size=6), st.sampled_from([1e-3, 1.0, 1e3]))
def test_every_figure_is_finite(told: list[Told], temperature: float):
    found = step_health(make_batch(told), gradients_of(told), temperature=temperature)
    assert ("health/nll" in found) == bool(told)
    assert all(math.isfinite(value) for value in found.values())
    shares = [value for name, value in found.items() if name.endswith(("_share", "sample_size"))]
    assert all(0 <= value <= 1 + 1e-12 for value in shares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_furthest_drift_is_finite(dtype: torch.dtype):
    told = [Told(1.0, [-1e4] * 3, [-1e-6] * 3), Told(-1.0, [0.0] * 3, [-1e4] * 3), Told(-1.0, [0.0], [0.0])]
    batch = make_batch(told)
    assert batch.behavior_logprobs_N is not None
    batch = replace(
        batch,
        logprobs_N=batch.logprobs_N.to(dtype),
        behavior_logprobs_N=batch.behavior_logprobs_N.to(dtype),
        advantages_R=batch.advantages_R.to(dtype),
    )
    found = step_health(batch, torch.full((7,), 1e30, dtype=dtype))
    assert all(math.isfinite(value) for value in found.values())
    assert found["health/ratio_max"] == pytest.approx(math.exp(20))
    assert found["health/ratio_min"] == pytest.approx(math.exp(-20))
    assert found["health/effective_sample_size"] == pytest.approx(3 / 7)
    assert found["health/sequence_effective_sample_size"] == pytest.approx(1 / 3)


def test_small_drift_is_not_rounded_away():
    """KL of a drift d is about d^2 / 2: far below what 1 + d has digits for."""
    found = step_health(make_batch([Told(1.0, [-1.0, -1.0], [-1.0 - 1e-7, -1.0 + 1e-7])]))
    assert found["health/behavior_kl"] == pytest.approx(5e-15, rel=1e-1)


def test_log_probs_rounded_above_zero_have_no_mass():
    found = step_health(make_batch([Told(1.0, [1e-4])]), torch.tensor([-1.0]))
    assert found["health/positive_gradient_mass"] == 0.0


def test_leaves_the_graph_alone():
    batch = make_batch([Told(1.0, [-1.0, -2.0], [-1.0, -1.0])])
    batch.logprobs_N.requires_grad_()
    before = batch.logprobs_N.detach().clone()
    step_health(batch, torch.ones(2))
    assert batch.logprobs_N.grad is None
    assert torch.equal(batch.logprobs_N.detach(), before)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_a_temperature_that_is_none(temperature: float):
    with pytest.raises(ValueError, match="temperature is"):
        step_health(make_batch([Told(1.0, [-1.0])]), temperature=temperature)
