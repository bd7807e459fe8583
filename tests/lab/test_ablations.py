import pytest
import torch
from hypothesis import given

from driftproof.lab.ablations import BatchNormalized, Normalized
from driftproof.objectives import Objective, ObjectiveError, build
from tests.objectives.steps import Step, evaluate, make_step, steps


@pytest.mark.parametrize(
    ("ablation", "objective"),
    [
        (Normalized(scale="none"), build("naive")),
        (Normalized(scale="none", alpha=0.2), build("spo")),
        (Normalized(), build("asympo")),
        (Normalized(clip=True), build("asympo", stable=True)),
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
