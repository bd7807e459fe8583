"""What every objective promises: however the step is cut, ordered or padded, it is the same step."""

import math
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.objectives import OBJECTIVES, Objective, ObjectiveError, Responses, build

from .steps import Gradient, Step, evaluate, gradient, make_step, steps

VARIANTS = [
    *[
        build(name, **aggregation)
        for name in ("naive", "spo", "grpo")
        for aggregation in (
            {},
            {"aggregation": "token-mean"},
            {"aggregation": "seq-mean-token-sum-norm", "horizon": 9},
        )
    ],
    build("asympo"),
    build("asympo", floor=0.0),
    build("asympo", stable=True),
]


def label(objective: Objective) -> str:
    changed = [
        f"{f.name}={getattr(objective, f.name)}" for f in fields(objective) if getattr(objective, f.name) != f.default
    ]
    return " ".join([objective.name, *changed])


each_objective = pytest.mark.parametrize("objective", VARIANTS, ids=label)


def assert_same(left: Gradient, right: Gradient) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(left[1], right[1], rtol=1e-11, atol=1e-13)
    assert left[2].keys() == right[2].keys()
    for name in left[2]:
        assert float(left[2][name]) == pytest.approx(float(right[2][name]), rel=1e-5, abs=1e-6), name


def test_every_objective_is_among_the_variants():
    assert {objective.name for objective in VARIANTS} == set(OBJECTIVES)


@each_objective
@given(step=steps(), data=st.data())
def test_the_split_into_micro_batches_and_their_order_do_not_matter(
    objective: Objective, step: Step, data: st.DataObject
):
    order = data.draw(st.permutations(range(step.size)))
    cuts = sorted(data.draw(st.sets(st.integers(1, step.size), max_size=4)) | {0, step.size})
    parts = [order[start:end] for start, end in pairwise(cuts)]
    assert_same(evaluate(step, objective, parts), evaluate(step, objective))


@each_objective
@given(step=steps(), seed=st.integers(0, 2**32 - 1))
def test_padding_and_holes_in_the_mask_do_not_matter(objective: Objective, step: Step, seed: int):
    """Masked positions, which hold NaN here, get no gradient."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, step.logprobs)) + 3
    places = [
        torch.randperm(width, generator=generator)[: len(values)].sort().values.tolist() for values in step.logprobs
    ]
    mask = torch.zeros(step.size, width)
    padded = torch.full((2, step.size, width), math.nan, dtype=torch.float64)
    for row, where in enumerate(places):
        mask[row, where] = 1
        padded[0, row, where], padded[1, row, where] = step.logprobs[row], step.behavior[row]
    leaf = padded[0].requires_grad_()
    output = objective(Responses.from_padded(leaf, mask, step.advantages_R, padded[1], group_R=step.group_R))
    output.loss.backward()
    assert leaf.grad is not None
    assert not leaf.grad[mask == 0].any()
    found = torch.cat([leaf.grad[row, where] for row, where in enumerate(places)])
    assert_same((output.loss.detach(), found, output.metrics), evaluate(step, objective))


@each_objective
def test_equal_rewards_teach_nothing(objective: Objective):
    step = make_step([3, 1, 2], [0.1, 0.1, 0.1], [0, 0, 0])
    loss, slopes, _ = evaluate(step, objective)
    assert loss.item() == 0
    assert not slopes.any()


@each_objective
def test_empty_responses_are_counted_but_contribute_nothing(objective: Objective):
    with_empty = make_step([0, 3, 0, 2], [1.0, 0.0, 0.0, 1.0], [0, 0, 0, 0])
    without = Step(with_empty.logprobs[1::2], with_empty.behavior[1::2], with_empty.advantages_R[1::2], torch.zeros(2))
    loss, slopes, _ = evaluate(with_empty, objective)
    expected_loss, expected_slopes, _ = evaluate(without, objective)
    # Half of the responses are empty; a mean over tokens does not see them.
    share = 1.0 if objective.aggregation == "token-mean" else 0.5
    torch.testing.assert_close(loss, share * expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slopes, share * expected_slopes, rtol=1e-12, atol=1e-12)


@each_objective
def test_a_step_of_empty_responses_alone_is_zero(objective: Objective):
    step = make_step([0, 0], [1.0, 0.0], [0, 0])
    leaves = step.leaves()
    output = objective(step.whole(leaves))
    output.loss.backward()
    assert output.loss.item() == 0
    assert len(gradient(leaves)) == 0
    assert all(float(value) == 0 for value in output.metrics.values())


@each_objective
def test_metrics_are_detached_and_float32_works(objective: Objective):
    step = make_step([3, 1], [1.0, 0.0], [0, 0])
    leaves = [leaf.detach().float().requires_grad_() for leaf in step.leaves()]
    step32 = Step(leaves, [b.float() for b in step.behavior], step.advantages_R.float(), step.group_R)
    output = objective(step32.whole(leaves))
    assert output.loss.dtype == torch.float32
    assert not any(value.requires_grad for value in output.metrics.values())
    torch.testing.assert_close(output.loss.double(), evaluate(step, objective)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ({}, (-(1 + 3) / 2 + 5) / 2),
        ({"aggregation": "token-mean"}, (-(1 + 3) + 5) / 3),
        ({"aggregation": "seq-mean-token-sum-norm", "horizon": 10}, (-(1 + 3) + 5) / (2 * 10)),
    ],
)
def test_aggregations_divide_by_what_they_say(aggregation: dict[str, object], expected: float):
    logprobs = torch.tensor([[-1.0, -3.0], [-5.0, 0.0]], dtype=torch.float64)
    batch = Responses.from_padded(logprobs, torch.tensor([[1, 1], [1, 0]]), torch.tensor([-1.0, 1.0]))
    assert build("naive", **aggregation)(batch).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("asymp", {}, "unknown objective 'asymp'; did you mean 'asympo'? valid: asympo, grpo, naive, spo"),
        ("zzz", {}, "unknown objective 'zzz'; valid: asympo, grpo, naive, spo"),
        ("spo", {"alfa": 1}, "objective 'spo': unknown field 'alfa'; did you mean 'alpha'? valid: "),
        ("naive", {"name": "x"}, "objective 'naive': unknown field 'name'; valid: aggregation, horizon"),
        (
            "naive",
            {"aggregation": "mean"},
            "naive: unknown aggregation 'mean'; valid: seq-mean-token-mean, token-mean, ",
        ),
        ("naive", {"horizon": 5}, "naive: `horizon` (tokens) belongs to aggregation seq-mean-token-sum-norm"),
        ("spo", {"aggregation": "seq-mean-token-sum-norm"}, "spo: `horizon` (tokens) belongs to aggregation"),
        (
            "spo",
            {"aggregation": "seq-mean-token-sum-norm", "horizon": 0},
            "spo: horizon is 0; it must be a number from 1 to inf",
        ),
        ("spo", {"aggregation": "seq-mean-token-sum-norm", "horizon": "8"}, "spo: horizon is '8'; it must be a number"),
    ],
)
def test_build_says_what_is_wrong_and_what_is_valid(name: str, fields: dict[str, object], message: str):
    with pytest.raises(ObjectiveError) as caught:
        build(name, **fields)
    assert message in str(caught.value)
