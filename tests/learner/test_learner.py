import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from driftproof.errors import GroupError, ObjectiveError
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.learner.update import score
from driftproof.objectives import OBJECTIVES, build
from driftproof.types import Batch, Channel, FinishReason, Group
from tests.groups import make_batch, make_group, random_groups

from .tiny import own_logprobs, tiny_learner, tiny_model

CUTS: list[dict[str, Any]] = [
    {"token_budget": 1},
    {"token_budget": 31},
    {"token_budget": 9 * 32},
    {"gradient_checkpointing": True},
]
"""Every response alone; small micro-batches of unshared prompts; rows of 9 tokens; activations computed again."""
EVERY_CUT = {"asympo", "ppo", "dr-grpo", "m2po"}
"""An objective of each aggregation, the one with a critic, and the one that looks at the whole update."""


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.policy.model.named_parameters()}


def plain_learner(objective: str, **settings: Any) -> Learner:
    """A learner whose result is linear in the gradient."""
    learner = tiny_learner(objective, max_grad_norm=math.inf, lr=1.0, **settings)
    learner.optimizer = torch.optim.SGD(learner.policy.trained_parameters().values())
    return learner


def train_plainly(batch: Batch, objective: str, **settings: Any) -> tuple[Learner, dict[str, float]]:
    """One step of plain gradient descent."""
    learner = plain_learner(objective, **settings)
    return learner, learner.train(batch)


def settings_of(objective: str) -> dict[str, Any]:
    """Fields without which an objective cannot be made, and the terms that ask for every channel there is."""
    fields: dict[str, Any] = {"kl": 0.1, "entropy_bonus": 0.2}
    if OBJECTIVES[objective].aggregation == "seq-mean-token-sum-norm":
        fields["horizon"] = 6
    if Channel.BEHAVIOR_LOGPROBS in OBJECTIVES[objective].channels:
        fields["correction"] = "truncate"
    return fields


@pytest.mark.parametrize(
    ("objective", "cut_as"),
    [
        pytest.param(objective, cut, marks=[] if cut is CUTS[0] or objective in EVERY_CUT else pytest.mark.slow)
        for objective in OBJECTIVES
        for cut in CUTS
    ],
)
def test_the_cut_into_micro_batches_does_not_change_the_step(objective: str, cut_as: dict[str, Any]):
    needs = Channel.BEHAVIOR_LOGPROBS in OBJECTIVES[objective].channels
    long = make_group([1, 2], [[3] * 12, []], [1.0, 0.0], behavior_logprobs=[-1.0] * 12 if needs else None)
    batch = make_batch(*random_groups(3, behavior_logprobs=needs), long)
    fields = settings_of(objective)
    whole, expected = train_plainly(batch, objective, fields=fields)
    cut, found = train_plainly(batch, objective, fields=fields, **cut_as)
    assert len(whole.pack(batch.groups)) == 1
    if "gradient_checkpointing" not in cut_as:
        assert cut.pack(batch.groups)[0].positions != whole.pack(batch.groups)[0].positions
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert expected["grad_norm"] > 0.01
    for name, tensor in weights(cut).items():
        torch.testing.assert_close(tensor, weights(whole)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradient_checkpointing_computes_each_layer_again(gradient_checkpointing: bool):
    learner = tiny_learner(gradient_checkpointing=gradient_checkpointing)
    calls: list[bool] = []
    learner.policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    learner.train(make_batch(*random_groups(1)))
    # In eval mode, so that dropout is off in both.
    assert calls == ([False, False] if gradient_checkpointing else [False])


def test_naive_moves_the_weights_along_its_gradient():
    """The objective by hand, through the model's own forward pass."""
    groups = random_groups(5)
    learner, metrics = train_plainly(make_batch(*groups), "naive")
    before = tiny_learner().policy.model
    loss = torch.zeros(())
    for group in groups:
        for response, reward in zip(group.split(), group.rewards, strict=True):
            logprobs = own_logprobs(before, group.prompt_tokens.tolist(), response.tolist())
            loss = loss - (reward - group.rewards.mean()) * logprobs.mean() / sum(g.size for g in groups)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["health/balance"] == pytest.approx(loss.item(), abs=1e-6)
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(weights(learner)[name], parameter.detach() - parameter.grad, rtol=1e-4, atol=1e-5)


def test_every_term_by_hand_through_the_models_own_forward_pass():
    """GRPO corrected to the proximal policy, with KL to a reference and an entropy bonus."""
    groups = random_groups(5, behavior_logprobs=True)
    fields = {"kl": 0.3, "kl_estimator": "k2", "entropy_bonus": 0.2, "correction": "mask", "aggregation": "token-mean"}
    learner, metrics = train_plainly(make_batch(*groups), "grpo", fields=fields)
    policy, reference = tiny_model(), tiny_model(seed=77)
    loss, tokens = torch.zeros(()), sum(len(group.response_tokens) for group in groups)
    for group in groups:
        behavior = torch.from_numpy(group.behavior_logprobs.copy()).split(group.response_lengths.tolist())
        for response, reward, mu in zip(group.split(), group.rewards, behavior, strict=True):
            sequence = (group.prompt_tokens.tolist(), response.tolist())
            logprobs, distribution = own_logprobs(policy, *sequence), own_distribution(policy, *sequence)
            weight = (logprobs.detach() - mu).exp()
            weight = torch.where((weight < 0.5) | (weight > 2), 0, weight)
            ratio = (logprobs - logprobs.detach()).exp()
            difference = logprobs - own_logprobs(reference, *sequence).detach()
            surrogate = -weight * ratio * (reward - group.rewards.mean())
            loss = loss + (surrogate + 0.3 * difference**2 / 2 - 0.2 * distribution.entropy()).sum() / tokens
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert 0 < metrics["objective/corrected_share"] < 1
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(weights(learner)[name], parameter.detach() - parameter.grad, rtol=1e-4, atol=1e-5)


def own_distribution(model: Any, prompt: list[int], response: list[int]) -> torch.distributions.Categorical:
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.distributions.Categorical(logits=logits)


def test_several_updates_of_a_step_are_steps_of_their_own():
    groups = random_groups(5, count=4)
    learner, metrics = train_plainly(make_batch(*groups), "naive", updates_per_step=2)
    other = plain_learner("naive")
    first, second = other.train(make_batch(*groups[:2])), other.train(make_batch(*groups[2:]))
    for name in ("loss", "grad_norm", "health/nll", "health/balance"):
        assert metrics[name] == pytest.approx((first[name] + second[name]) / 2)
    assert metrics["groups"] == 4
    assert learner.step == 1
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(learner).items())


def test_the_proximal_policy_is_the_one_before_the_steps_first_update():
    """With behavior = current there is nothing to correct before, and the ratio of the second update is to before."""
    groups = random_groups(6, count=2)
    fresh = plain_learner("naive")
    scored = [score(fresh.policy, fresh.pack([group]), len(group.response_tokens)).logprobs_N for group in groups]
    groups = [replace(group, behavior_logprobs=s.numpy()) for group, s in zip(groups, scored, strict=True)]
    fields = {"correction": "truncate", "clip_high": 0.01, "clip_low": 0.01, "aggregation": "token-mean"}
    corrected, found = train_plainly(make_batch(*groups), "grpo", fields=fields, updates_per_step=2)
    direct, expected = train_plainly(
        make_batch(*groups), "grpo", fields=fields | {"correction": "none"}, updates_per_step=2
    )
    assert found["objective/clipped_high_share"] == expected["objective/clipped_high_share"] > 0
    assert found["objective/corrected_share"] == 0
    for name, tensor in weights(corrected).items():
        torch.testing.assert_close(tensor, weights(direct)[name], rtol=1e-5, atol=1e-6)


def test_a_critic_learns_the_rewards():
    group = make_group([1, 2], [[3, 4], [5, 6]], [1.0, 0.0], behavior_logprobs=[-1.0] * 4)
    learner = tiny_learner("ppo", fields={"value_coefficient": 1.0, "gae_lambda": 1.0}, lr=1e-2, steps=40)
    losses = [learner.train(make_batch(group, step=step))["objective/value_loss"] for step in range(1, 41)]
    # Values start at 0: half of the tokens have a return of 1.
    assert losses[0] == pytest.approx(0.25)
    assert losses[-1] < 0.1
    assert learner.policy.value_head is not None
    assert learner.policy.value_head.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("objective", "fields", "message"),
    [
        ("naive", {"kl": 0.1}, "objective 'naive' has a KL term; it needs a reference policy"),
        ("ppo", {}, "objective 'ppo' needs a policy with a value head"),
    ],
)
def test_a_learner_without_what_its_objective_needs_is_refused(objective: str, fields: dict[str, float], message: str):
    with pytest.raises(ObjectiveError, match=message):
        Learner(Policy(tiny_model()), build(objective, **fields), LearnerSettings(), steps=1)


def test_training_learns_what_is_rewarded():
    group = make_group([1, 2], [[3, 4], [5, 6]], [1.0, 0.0])
    learner = tiny_learner("asympo", lr=1e-2, steps=20)
    nll = [learner.train(make_batch(group, step=step))["health/positive_nll"] for step in range(1, 21)]
    assert nll[-1] < 0.1 < nll[0]
    assert learner.step == 20


def test_metrics_say_what_was_trained():
    groups = (
        make_group([1], [[2, 3], [4]], [1.0, 0.0]),
        make_group([1], [[2, 3, 5], [4]], [0.5, 0.5]),
        make_group([1], [[2], [2]], [math.nan, 1.0], problems=("time limit", "")),
    )
    metrics = tiny_learner(lr=0.5, warmup_steps=2).train(Batch(step=1, groups=groups, ages=(0, 2, 4)))
    expected = {
        "reward": 3.0 / 5,
        "age_mean": 2.0,
        "age_max": 4,
        "groups": 3,
        "groups_of_equal_reward": 2,
        "responses": 6,
        "responses_without_reward": 1,
        "response_tokens": 9,
        "response_length": 1.5,
        "truncated_share": 0.0,
        "skipped": 0.0,
        "lr": 0.25,
        "health/positive_share": 1 / 6,
        "health/negative_share": 1 / 6,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert all(isinstance(value, float | int) for value in metrics.values())
    assert {"loss", "grad_norm", "objective/floored_share", "health/entropy"} <= set(metrics)


def test_truncated_responses_are_counted():
    group = make_group([1], [[2, 3], [4]], [1.0, 0.0])
    cut = Group(
        prompt_index=0,
        prompt_tokens=group.prompt_tokens,
        response_tokens=group.response_tokens,
        response_lengths=group.response_lengths,
        rewards=group.rewards,
        finish_reasons=(FinishReason.LENGTH, FinishReason.STOP),
    )
    assert tiny_learner().train(make_batch(cut))["truncated_share"] == 0.5


def test_a_gradient_that_is_not_finite_is_skipped_and_said():
    good, bad = random_groups(1), make_group([1], [[2], [3]], [1e300, 0.0])
    learner, other = tiny_learner(), tiny_learner()
    before = weights(learner)
    metrics = learner.train(make_batch(bad, *good, step=1))
    assert metrics["skipped"] == 1.0
    assert not math.isfinite(metrics["grad_norm"])
    assert learner.step == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())
    # Nothing of it is left in the gradients or the optimizer: the next step is as if it had never been.
    assert learner.train(make_batch(*good, step=2)) == other.train(make_batch(*good, step=2))
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(learner).items())


def state_of(learner: Learner) -> list[torch.Tensor]:
    """Weights and all that the optimizer remembers."""
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*learner.policy.trained_parameters().values(), *moments)]


BAD = make_group([1], [[2], [3]], [1e300, 0.0])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_skipped_update_touches_neither_weights_nor_moments(bfloat16: bool):
    learner = tiny_learner(bfloat16=bfloat16, weight_decay=0.1)
    learner.train(make_batch(*random_groups(1)))
    before = state_of(learner)
    assert len(before) > 2 * len(weights(learner))
    good = random_groups(2, count=2)
    assert learner.train(make_batch(good[0], BAD, good[1], step=2))["skipped"] == 1.0
    assert all(torch.equal(now, then) for now, then in zip(state_of(learner), before, strict=True))
    (skipped,) = learner.skipped
    assert skipped.offending == {1: (0, 1)}
    assert learner.train(make_batch(*good, step=3))["skipped"] == 0.0
    assert learner.skipped == ()


def test_of_several_updates_the_bad_ones_alone_are_skipped():
    groups = random_groups(5, count=4)
    groups[3] = BAD
    learner, other = tiny_learner(updates_per_step=2), tiny_learner()
    assert learner.train(make_batch(*groups))["skipped"] == 0.5
    assert [update.offending for update in learner.skipped] == [{3: (0, 1)}]
    other.train(make_batch(*groups[:2]))
    assert all(torch.equal(now, then) for now, then in zip(state_of(learner), state_of(other), strict=True))


@pytest.mark.parametrize("objective", ["asympo", "m2po"])
def test_weights_that_are_not_finite_put_the_blame_on_every_response(objective: str):
    learner = tiny_learner(objective)
    assert learner.finite
    with torch.no_grad():
        learner.policy.head.weight[0, 0] = math.nan
    assert not learner.finite
    groups = random_groups(1, behavior_logprobs=objective == "m2po")
    assert learner.train(make_batch(*groups))["skipped"] == 1.0
    assert learner.skipped[0].offending == {n: tuple(range(group.size)) for n, group in enumerate(groups)}


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(monkeypatch: pytest.MonkeyPatch):
    learner = tiny_learner()
    before, call = state_of(learner), type(learner.objective).__call__

    def infinite(self: Any, batch: Any) -> Any:
        output = call(self, batch)
        return replace(output, loss=output.loss + math.inf)

    monkeypatch.setattr(type(learner.objective), "__call__", infinite)
    groups = random_groups(1)
    metrics = learner.train(make_batch(*groups))
    assert math.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1.0
    assert all(torch.equal(now, then) for now, then in zip(state_of(learner), before, strict=True))
    # Nobody stands out: all of them are kept.
    assert learner.skipped[0].offending == dict.fromkeys(range(len(groups)), ())


def test_the_gradient_is_clipped_to_its_norm():
    """What is clipped to a millionth moves plain gradient descent by a millionth of the learning rate."""
    learner = tiny_learner("naive", max_grad_norm=1e-6, lr=1.0)
    learner.optimizer = torch.optim.SGD(learner.policy.model.parameters())
    before = weights(learner)
    assert learner.train(make_batch(*random_groups(1)))["grad_norm"] > 1e-3
    moved = torch.stack([(tensor - before[name]).norm() for name, tensor in weights(learner).items()]).norm()
    assert moved.item() == pytest.approx(1e-6, rel=0.05)


def test_a_step_of_equal_rewards_leaves_the_weights_alone():
    learner = tiny_learner()
    before = weights(learner)
    metrics = learner.train(make_batch(make_group([1], [[2, 3], [4]], [0.1, 0.1])))
    assert metrics["grad_norm"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_a_step_of_empty_responses_is_no_error():
    assert tiny_learner().train(make_batch(make_group([1], [[], []], [1.0, 0.0])))["grad_norm"] == 0


def test_an_objective_without_its_channel_is_refused():
    with pytest.raises(ObjectiveError, match="needs behavior_logprobs"):
        tiny_learner("grpo").train(make_batch(*random_groups(1)))


def test_a_token_that_the_model_has_not_is_refused():
    with pytest.raises(GroupError, match="a group has the token 50; the model's vocabulary has 50"):
        tiny_learner().train(make_batch(make_group([1], [[3, 50], [4]])))


def test_groups_must_agree_on_their_channels():
    mixed = random_groups(1, count=1, behavior_logprobs=True) + random_groups(2, count=1)
    with pytest.raises(GroupError, match="1 of the step's 2 groups carry behavior_logprobs"):
        tiny_learner("grpo").train(make_batch(*mixed))


def test_heldout_groups_are_measured_without_training():
    groups = random_groups(4)
    learner = tiny_learner()
    before = weights(learner)
    measured = learner.nll_by_sign(groups)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())
    trained = learner.train(make_batch(*groups))
    assert measured == pytest.approx({name: trained[name] for name in measured}, rel=1e-5)
    assert learner.nll_by_sign([]) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {1: 1.0, 5: 1.0, 10: 1.0, 11: 1.0}),
        ({"warmup_steps": 4}, {1: 0.25, 4: 1.0, 5: 1.0, 10: 1.0}),
        ({"schedule": "linear"}, {1: 1.0, 2: 0.9, 10: 0.1, 11: 0.0, 30: 0.0}),
        ({"schedule": "linear", "warmup_steps": 5}, {1: 0.2, 5: 1.0, 6: 1.0, 7: 0.8, 10: 0.2, 11: 0.0}),
        ({"schedule": "cosine"}, {1: 1.0, 6: 0.5, 11: 0.0, 30: 0.0}),
        ({"schedule": "cosine", "warmup_steps": 10}, {5: 0.5, 10: 1.0}),
        ({"schedule": "cosine", "warmup_steps": 20}, {5: 0.25, 10: 0.5}),
    ],
)
def test_learning_rates_at_the_ends_of_their_schedules(fields: dict[str, Any], expected: dict[int, float]):
    settings = LearnerSettings(lr=1.0, **fields)
    assert {step: settings.lr_at(step, steps=10) for step in expected} == pytest.approx(expected)
