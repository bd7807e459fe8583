import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.objectives import build

from .steps import Step, evaluate, one_token, steps

probabilities = st.floats(1e-6, 1 - 1e-6)
advantages = st.sampled_from([1.0, -1.0, 0.3, -2.5, 0.0])


@given(mu=probabilities, pi=probabilities, advantage=advantages, delta=st.sampled_from([0.04, 0.15, 0.5, 2.5, 12.5]))
def test_drpo_scales_the_gradient_by_its_weight(mu: float, pi: float, advantage: float, delta: float):
    """Table 1 and Eq. 9: A rho (1 - sign(A (rho - 1)) |pi - mu| / delta)."""
    loss, slope, _ = one_token(build("drpo", horizon=1, delta=delta), pi / mu, advantage, mu)
    weight = 1 - math.copysign(1, advantage * (pi - mu)) * abs(pi - mu) / delta
    assert 1 - 1 / delta <= weight <= 1 + 1 / delta
    assert slope == pytest.approx(-advantage * pi / mu * weight, rel=1e-6, abs=1e-9)
    penalty = abs(advantage) / (2 * delta) * mu * (pi / mu - 1) ** 2
    assert loss == pytest.approx(-(pi / mu * advantage - penalty), rel=1e-9, abs=1e-12)


@given(ratio=st.floats(0.01, 100), advantage=advantages, epsilon=st.sampled_from([0.05, 0.2, 1.0]), mu=probabilities)
def test_simple_po_scales_the_gradient_by_its_weight(ratio: float, advantage: float, epsilon: float, mu: float):
    """Whatever the token's own probability."""
    loss, slope, _ = one_token(build("simple-po", horizon=1, epsilon=epsilon), ratio, advantage, min(mu, 0.999 / ratio))
    weight = 1 - math.copysign(1, advantage * (ratio - 1)) * abs(ratio - 1) / epsilon
    assert slope == pytest.approx(-advantage * ratio * weight, rel=1e-6, abs=1e-9)
    penalty = abs(advantage) / (2 * epsilon) * (ratio - 1) ** 2
    assert loss == pytest.approx(-(ratio * advantage - penalty), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_push_is_zero_at_the_threshold_and_turns_back_beyond(advantage: float):
    for move, direction in ((0.15, 1), (0.2, 0), (0.25, -1)):
        ratio = 1 + advantage * move
        drpo = one_token(build("drpo", horizon=1, delta=0.1), ratio, advantage, mu=0.5)
        simple = one_token(build("simple-po", horizon=1, epsilon=0.2), ratio, advantage, mu=0.5)
        for _, slope, metrics in (drpo, simple):
            # Minus the slope is where the token is pushed.
            assert -slope * advantage == pytest.approx(0, abs=1e-12) if not direction else True
            assert (-slope * advantage > 1e-3) == (direction > 0)
            assert (-slope * advantage < -1e-3) == (direction < 0)
            if direction:
                assert metrics == {"turned_share": direction < 0}


@pytest.mark.parametrize("name", ["drpo", "simple-po"])
def test_a_token_that_moves_back_is_pushed_harder_and_never_turned(name: str):
    field = {"delta": 0.1} if name == "drpo" else {"epsilon": 0.2}
    objective = build(name, horizon=1, **field)
    for ratio, advantage in ((0.5, 1.0), (1.5, -1.0)):
        _, slope, metrics = one_token(objective, ratio, advantage, mu=0.5)
        assert -slope * advantage > ratio
        assert metrics == {"turned_share": 0}


@given(steps())
def test_with_a_large_threshold_both_are_the_plain_ratio(step: Step):
    expected = [-response.advantage * ratio / step.size / 8 for response in step.written() for ratio in response.ratios]
    for objective in (build("drpo", horizon=8, delta=1e12), build("simple-po", horizon=8, epsilon=1e12)):
        found = evaluate(step, objective)
        assert found.gradient[0].tolist() == pytest.approx(expected, rel=1e-8)
        assert found.metrics["turned_share"] == 0
