from dataclasses import replace

import pytest
import torch
from hypothesis import given

from driftproof.errors import ObjectiveError
from driftproof.objectives import Objective, build
from driftproof.types import Channel
from studies.ablations import BatchNormalized, ClampedDRPO, Normalized, ProbableNegatives
from tests.objectives.steps import Step, evaluate, make_step, steps


@pytest.mark.parametrize(
    ("ablation", "objective"),
    [
        (Normalized(scale="none"), build("naive")),
        (Normalized(scale="none", alpha=0.2), build("spo")),
        (Normalized(), build("asympo")),
        (Normalized(clip=True), build("asympo", stable=True)),
        (Normalized(alpha=0.2), build("scaled-asympo")),
        (Normalized(scale="nll", ceiling=1e-2), build("naive")),
    ],
    ids=lambda o: o.name,
)
@given(step=steps(shortest=1))
def test_what_it_is_made_of_gives_the_known_objectives(ablation: Objective, objective: Objective, step: Step):
    loss, gradient, _ = evaluate(step, ablation)
    expected_loss, expected, _ = evaluate(step, objective)
    # A divisor that is always the same is a matter of scale.
    scale = 1e-2 if getattr(ablation, "ceiling", 1.0) == 1e-2 else 1.0
    torch.testing.assert_close(scale * loss, expected_loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(scale * gradient, expected, rtol=1e-10, atol=1e-12)


def test_confidence_gives_every_response_the_same_mass_in_logit_space():
    step = make_step([3, 5, 1, 4], [1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1])
    gradient = evaluate(step, Normalized(scale="confidence", floor=1e-6)).gradient[0]
    mass_N = gradient.abs() * (1 - step.channels["logprobs"].exp())
    masses = [part.sum() for part in mass_N.split([3, 5, 1, 4])]
    torch.testing.assert_close(torch.stack(masses), step.advantages_R.abs() / 4, rtol=1e-10, atol=1e-12)


def test_normalizing_negatives_alone_leaves_positives_as_in_naive():
    step = make_step([3, 2], [1.0, 0.0], [0, 0])
    found = evaluate(step, Normalized(sides="negatives")).gradient[0]
    naive, asympo = (evaluate(step, build(name)).gradient[0] for name in ("naive", "asympo"))
    torch.testing.assert_close(found, torch.cat([naive[:3], asympo[3:]]), rtol=1e-10, atol=1e-12)


def test_per_batch_both_signs_weigh_the_same_and_a_part_is_refused():
    step = make_step([3, 2, 4, 1], [1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1])
    found = evaluate(step, BatchNormalized())
    assert abs(found.loss.item()) < 1e-12
    # Within a sign the responses keep the proportions of naive.
    gradient, naive = found.gradient[0], evaluate(step, build("naive")).gradient[0]
    torch.testing.assert_close(gradient[0] / naive[0], gradient[-1] / naive[-1], rtol=1e-10, atol=0)
    assert not torch.isclose(gradient[0] / naive[0], gradient[3] / naive[3])
    with pytest.raises(ObjectiveError, match="needs the whole step"):
        evaluate(step, BatchNormalized(), [[0, 1], [2, 3]])


def test_the_entropy_floor_divides_by_nothing_less_than_the_entropy():
    step = make_step([3, 2], [1.0, 0.0], [0, 0])
    entropy_N = torch.tensor([9.0, 10.0, 11.0, 0.0, 0.0], dtype=torch.float64)
    step = replace(step, channels=step.channels | {"entropy": entropy_N})
    found = evaluate(step, Normalized(entropy_floor=True)).gradient[0]
    naive, asympo = (evaluate(step, build(name)).gradient[0] for name in ("naive", "asympo"))
    torch.testing.assert_close(found, torch.cat([naive[:3] / 10, asympo[3:]]), rtol=1e-10, atol=1e-12)
    assert Normalized(entropy_floor=True).needs == {Channel.ENTROPY}
    assert not Normalized().needs


@given(step=steps(shortest=1))
def test_probable_negatives_push_in_proportion_to_their_probability(step: Step):
    logprobs_N = step.channels["logprobs"]
    naive = evaluate(step, build("naive")).gradient[0]
    negative_N = naive > 0
    per_token = evaluate(step, ProbableNegatives(alpha=0.5)).gradient[0]
    torch.testing.assert_close(
        per_token, torch.where(negative_N, 0.5 * logprobs_N.exp() * naive, naive), rtol=1e-10, atol=1e-12
    )
    per_response = evaluate(step, ProbableNegatives(level="response")).gradient[0]
    means = torch.cat([part.mean().expand(len(part)) for part in logprobs_N.split(step.lengths_R.tolist())])
    torch.testing.assert_close(
        per_response, torch.where(negative_N, means.exp() * naive, naive), rtol=1e-10, atol=1e-12
    )


@given(step=steps(shortest=1))
def test_unclamped_it_has_the_gradient_of_drpo(step: Step):
    expected = evaluate(step, build("drpo", delta=0.1, horizon=8)).gradient
    found = evaluate(step, ClampedDRPO(delta=0.1, horizon=8)).gradient
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@given(step=steps(shortest=1))
def test_clamped_it_neither_turns_back_nor_pushes_harder(step: Step):
    plain = evaluate(step, build("drpo", delta=1e6, horizon=8)).gradient[0]
    found = evaluate(step, ClampedDRPO(delta=0.1, horizon=8, low=0.0, high=1.0)).gradient[0]
    assert (found * plain >= 0).all()
    assert (found.abs() <= plain.abs() * (1 + 1e-4)).all()
