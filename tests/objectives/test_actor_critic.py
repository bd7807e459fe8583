import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from driftproof.errors import ObjectiveError
from driftproof.objectives import Responses, build

from .formulas import estimate, value_loss
from .steps import Result, Step, a_step, assert_same, evaluate, make_step, steps


@given(steps())
@settings(max_examples=20)
def test_without_a_critic_and_undiscounted_it_is_grpo_on_raw_rewards(step: Step):
    zeros = torch.zeros_like(step.channels["values"])
    step = step.with_channels(values=zeros, old_values=zeros)
    ppo = build("ppo", gae_lambda=1.0, value_coefficient=0.0)
    on_rewards = replace(step, advantages_R=step.rewards_R.nan_to_num())
    found, expected = evaluate(step, ppo), evaluate(on_rewards, build("grpo", aggregation="token-mean"))
    found.metrics.pop("value_loss")
    assert found.metrics.pop("value_mean") == 0
    assert_same(found, expected)


@given(steps())
@settings(max_examples=20)
def test_the_advantages_of_the_group_are_not_used(step: Step):
    other = replace(step, advantages_R=torch.ones_like(step.advantages_R))
    assert_same(evaluate(step, build("ppo")), evaluate(other, build("ppo")))


@given(steps())
@settings(max_examples=20)
def test_the_value_loss_and_its_gradient_are_by_hand(step: Step):
    found = evaluate(step, build("ppo", value_clip=0.3, gae_lambda=0.7, discount=0.9, value_coefficient=0.5))
    losses, slopes = [], []
    for response in step.written():
        advantages = estimate(response, 0.9, 0.7)
        for value, old, advantage in zip(response.values, response.old_values, advantages, strict=True):
            target = old + advantage
            near = min(max(value, old - 0.3), old + 0.3)
            within = (value - target) ** 2 >= (near - target) ** 2 or abs(value - old) <= 0.3
            given_ = not math.isnan(response.reward)
            losses.append(value_loss(value, old, advantage, 0.3) if given_ else 0.0)
            slopes.append(0.5 * (value - target) / step.tokens if given_ and within else 0.0)
    assert found.gradient[2].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-12)
    tokens = max(step.tokens, 1)
    assert found.metrics["value_loss"].item() == pytest.approx(sum(losses) / tokens)
    assert found.metrics["value_mean"].item() == pytest.approx(step.channels["values"].sum().item() / tokens)


def one_value(value: float, old: float | None, reward: float, **fields: float) -> tuple[float, float]:
    """Value loss and its derivative in the value, for a response of one token."""
    leaf = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    logprob = torch.tensor([[-1.0]], dtype=torch.float64)
    batch = Responses.from_padded(
        logprob, torch.ones(1, 1), torch.zeros(1), logprob, values=leaf, rewards_R=torch.tensor([reward]),
        old_values=None if old is None else torch.tensor([[old]]),
    )  # fmt: skip
    output = build("ppo", value_coefficient=1.0, **fields)(batch)
    output.loss.backward()
    assert leaf.grad is not None
    return output.metrics["value_loss"].item(), leaf.grad.item()


@pytest.mark.parametrize(
    ("value", "old", "reward", "loss", "slope"),
    [
        # Towards the return a value moves by at most 0.2: beyond, the larger error is the clipped one's, a constant.
        (0.1, 0.0, 1.0, 0.9**2 / 2, -0.9),
        (0.3, 0.0, 1.0, 0.8**2 / 2, 0.0),
        (-0.3, 0.0, -1.0, 0.8**2 / 2, 0.0),
        # Away from it, or past it, its own error is the larger one.
        (-0.3, 0.0, 1.0, 1.3**2 / 2, -1.3),
        (3.0, 0.0, 1.0, 2.0**2 / 2, 2.0),
        # Without old values the current ones are the old ones.
        (0.3, None, 1.0, 0.7**2 / 2, -0.7),
    ],
)
def test_a_value_is_clipped_around_its_old_one(
    value: float, old: float | None, reward: float, loss: float, slope: float
):
    assert one_value(value, old, reward) == pytest.approx((loss, slope))
    assert one_value(value, old, reward, value_clip=math.inf)[1] == pytest.approx(value - reward)


def test_the_actor_gives_no_gradient_to_the_values_nor_the_critic_to_the_log_probs():
    step = a_step()
    plain, without_old = step.leaves(), step.leaves()
    batch = replace(step.whole(without_old), old_values_N=None)
    build("ppo", value_coefficient=0.0)(step.whole(plain)).loss.backward()
    build("ppo", value_coefficient=0.0)(batch).loss.backward()
    for leaves in (plain, without_old):
        assert leaves["values"].grad is None or not leaves["values"].grad.any()
        assert leaves["logprobs"].grad is not None
    heavy, light = evaluate(step, build("ppo", value_coefficient=5.0)), evaluate(step, build("ppo"))
    assert torch.equal(heavy.gradient[0], light.gradient[0])
    torch.testing.assert_close(heavy.gradient[2], 50 * light.gradient[2])


def test_the_correction_leaves_the_critic_alone():
    step = a_step()
    step = step.with_channels(proximal_logprobs=step.channels["behavior_logprobs"] - 2)
    corrected = evaluate(step, build("ppo", correction="mask"))
    assert corrected.metrics["corrected_share"] == 1
    assert not corrected.gradient[0].any()
    assert torch.equal(corrected.gradient[2], evaluate(step, build("ppo")).gradient[2])


def test_a_response_without_a_reward_trains_neither():
    step = make_step([3, 2], [math.nan, 1.0], [0, 0]).on_policy()
    found = evaluate(step, build("ppo"))
    assert not found.gradient[:, :3].any()
    assert found.gradient[0, 3:].all()
    assert found.gradient[2, 3:].any()


@pytest.mark.parametrize(
    ("ratio", "reward", "slope"),
    [(1.1, 1.0, -1.1), (1.3, 1.0, 0.0), (0.7, 1.0, -0.7), (0.7, -1.0, 0.0), (2.9, -1.0, 2.9), (3.1, -1.0, 0.0)],
)
def test_the_ratio_is_clipped_by_the_sign_of_the_tokens_own_advantage(ratio: float, reward: float, slope: float):
    behavior = torch.full((1, 1), -5.0, dtype=torch.float64)
    leaf = (behavior + math.log(ratio)).requires_grad_()
    batch = Responses.from_padded(
        leaf, torch.ones(1, 1), torch.tensor([-reward]), behavior, values=0 * behavior, rewards_R=torch.tensor([reward])
    )
    output = build("ppo")(batch)
    output.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == pytest.approx(slope)
    assert output.metrics["clipped_high_share"] == (ratio == 1.3)
    assert output.metrics["clipped_low_share"] == (ratio == 0.7 and reward < 0)


def test_it_says_what_it_lacks():
    step = a_step()
    batch = step.whole(step.leaves())
    with pytest.raises(ObjectiveError, match="objective 'ppo' needs rewards_R, and the batch carries none"):
        build("ppo")(replace(batch, rewards_R=None))
    with pytest.raises(
        ObjectiveError, match="objective 'ppo' estimates advantages along a response; it cannot be split"
    ):
        build("ppo")(replace(batch, sum_over_ranks=lambda values: values))


def test_metrics_of_a_step_are_those_of_its_parts():
    step = a_step()
    whole, parts = evaluate(step, build("ppo")), evaluate(step, build("ppo"), [[n] for n in range(step.size)])
    assert_same(whole, Result(*parts))
