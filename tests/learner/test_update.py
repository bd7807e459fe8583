"""The two paths to an update's gradient, and what an update says of itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from driftproof.learner.flat_batch import FlatBatch
from driftproof.learner.learner import Learner
from driftproof.learner.packing import pack
from driftproof.learner.policy import Policy
from driftproof.learner.update import Update, backward, plain_backward, score
from driftproof.logprobs import variants
from driftproof.objectives import OBJECTIVES, build
from driftproof.types import Channel, Group
from tests.groups import make_batch, make_group, random_groups

from .test_learner import settings_of
from .tiny import own_logprobs, tiny_learner, tiny_model

CPU = torch.device("cpu")


def groups_for(objective: str) -> list[Group]:
    needs = Channel.BEHAVIOR_LOGPROBS in OBJECTIVES[objective].channels
    long = make_group([1, 2], [[3] * 12, []], [1.0, 0.0], behavior_logprobs=[-1.0] * 12 if needs else None)
    return [*random_groups(3, behavior_logprobs=needs), long]


def gradients_of(learner: Learner, groups: list[Group], *, fused: bool) -> tuple[Update, dict[str, torch.Tensor]]:
    fixed = {}
    if learner.reference is not None:
        tokens = sum(len(group.response_tokens) for group in groups)
        fixed["reference_logprobs_N"] = score(learner.reference, learner.pack(groups), tokens).logprobs_N
    flat = FlatBatch.of(groups, "mean", CPU, fixed)
    update = backward(learner.policy, learner.objective, learner.pack(groups), flat, fused=fused)
    named = learner.policy.trained_parameters().items()
    return update, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("blocks", [False, True], ids=["all logits", "blocks"])
@pytest.mark.parametrize("token_budget", [1, 1 << 14])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_fused_path_is_the_plain_one(
    objective: str, token_budget: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
):
    """With a KL term and an entropy bonus; `ppo` with its critic, `m2po` over the whole update."""
    if blocks:
        monkeypatch.setattr(variants, "_SMALL_BYTES", 0)
    groups, found = groups_for(objective), {}
    for fused in (True, False):
        learner = tiny_learner(objective, fields=settings_of(objective), token_budget=token_budget)
        if learner.policy.value_head is not None:
            torch.manual_seed(1)
            torch.nn.init.normal_(learner.policy.value_head.weight)
        found[fused] = gradients_of(learner, groups, fused=fused)
    (ours, our_gradients), (plain, plain_gradients) = found[True], found[False]
    assert our_gradients.keys() == plain_gradients.keys()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-6)
    for values in ("scored", "gradients"):
        expected = getattr(plain, values).all().fields
        assert getattr(ours, values).all().fields.keys() == expected.keys()
        for name, tensor in getattr(ours, values).all().fields.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.figures(1.0), plain.figures(1.0), rtol=1e-4, atol=1e-6, equal_nan=True)


def test_the_plain_path_is_its_text():
    policy, objective, groups = Policy(tiny_model()), build("asympo"), random_groups(3)
    learner = tiny_learner()
    _, expected = gradients_of(learner, groups, fused=True)
    flat = FlatBatch.of(groups, "mean", CPU)
    for micro_batch in learner.pack(groups):
        scored = policy.score(micro_batch)
        output = objective(flat.part(scored, micro_batch.responses_R, micro_batch.tokens_N))
        output.loss.backward()
    for name, parameter in policy.trained_parameters().items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["asympo", "ppo", "m2po"])
def test_a_learner_takes_the_same_steps_on_either_path(objective: str):
    needs = Channel.BEHAVIOR_LOGPROBS in OBJECTIVES[objective].channels
    learners = [tiny_learner(objective), tiny_learner(objective)]
    learners[1].fused = False
    for step in (1, 2):
        groups = random_groups(step, behavior_logprobs=needs)
        ours, plain = (learner.train(make_batch(*groups, step=step)) for learner in learners)
        assert ours == pytest.approx(plain, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_update_without_a_token_has_a_gradient_of_zero(objective: str, fused: bool):
    """So that ranks that have nothing to do stay in step with the others."""
    needs = Channel.BEHAVIOR_LOGPROBS in OBJECTIVES[objective].channels
    empty = make_group([1, 2], [[], []], [1.0, 0.0], behavior_logprobs=[] if needs else None)
    learner = tiny_learner(objective, fields=settings_of(objective))
    update, gradients = gradients_of(learner, [empty], fused=fused)
    assert update.total_loss == 0
    assert gradients
    assert all(not gradient.any() for gradient in gradients.values())


def test_the_plain_path_returns_what_was_scored_and_its_derivatives():
    policy, groups = Policy(tiny_model()), random_groups(1)
    (micro_batch,) = tiny_learner().pack(groups)
    weights_N = torch.linspace(-1, 1, len(micro_batch.targets_N))
    scored, weighed = plain_backward(policy, micro_batch, lambda scored, *_: weights_N @ scored.logprobs_N)
    assert not scored.logprobs_N.requires_grad
    torch.testing.assert_close(scored.logprobs_N, policy.score(micro_batch).logprobs_N.detach())
    assert torch.equal(weighed.logprobs_N, weights_N)


class HostReads(TorchDispatchMode):
    """Counts the single numbers that the host waits for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_host_waits_neither_for_each_parameter_nor_for_each_micro_batch(monkeypatch: pytest.MonkeyPatch):
    """All logits fit, so that the rows of a block need no shift, for which the host looks on a CPU alone; prompts are
    shared, as transformers looks for packed sequences where it gets no mask.
    """
    counts = []
    for layers, token_budget in ((1, 1 << 14), (5, 1 << 14), (1, 1)):
        other = tiny_learner()
        learner = Learner(Policy(tiny_model(num_hidden_layers=layers)), other.objective, other.settings, steps=10)
        monkeypatch.setattr(learner, "pack", partial(pack, token_budget=token_budget))
        batch = make_batch(*random_groups(1))
        with HostReads() as reads:
            learner.train(batch)
            assert learner.finite
        counts.append(reads.count)
    assert len(learner.pack(batch.groups)) > 1
    assert len(set(counts)) == 1, counts


def masked(group: Group, *masks: list[bool]) -> Group:
    trained = np.array([flag for mask in masks for flag in mask])
    logprobs = group.behavior_logprobs
    return replace(group, trained=trained, behavior_logprobs=None if logprobs is None else logprobs[trained])


@pytest.mark.parametrize("token_budget", [1, 1 << 14])
def test_tokens_that_the_policy_did_not_write_are_context_alone(token_budget: int):
    """By hand, through the model's own forward pass: tool results and user turns are read and not trained."""
    tokens = [[3, 4, 5, 6, 7], [8, 9], [2]]
    masks = [[True, False, False, True, True], [False, True], [False]]
    group = masked(make_group([1, 2], tokens, [1.0, 0.0, 1.0]), *masks)
    learner = tiny_learner("naive", token_budget=token_budget)
    update, gradients = gradients_of(learner, [group], fused=True)
    model, loss = tiny_model(), torch.zeros(())
    for response, mask, advantage in zip(tokens, masks, (group.rewards - group.rewards.mean()).tolist(), strict=True):
        logprobs = own_logprobs(model, [1, 2], response)[torch.tensor(mask)]
        loss = loss - advantage * logprobs.sum() / max(len(logprobs), 1) / 3
    loss.backward()
    assert update.flat.lengths_R.tolist() == [3, 1, 0]
    assert update.total_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["asympo", "grpo", "m2po"])
def test_a_mask_of_all_tokens_is_none(objective: str):
    groups = groups_for(objective)
    whole = [masked(group, [True] * len(group.response_tokens)) for group in groups]
    plain, found = tiny_learner(objective), tiny_learner(objective)
    assert found.train(make_batch(*whole)) == plain.train(make_batch(*groups))
