"""The correction between proximal and behavior policy, which every objective with a ratio can take."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings

from driftproof.objectives import OBJECTIVES, Objective, Responses, build

from .steps import Step, evaluate, steps

CORRECTED = [name for name in sorted(OBJECTIVES) if hasattr(OBJECTIVES[name], "correction")]


def build_with(name: str, **fields: object) -> Objective:
    horizon = {"horizon": 8} if OBJECTIVES[name].aggregation.endswith("norm") else {}
    return build(name, **horizon, **fields)


def ways() -> Iterator[dict[str, str]]:
    for mode in ("truncate", "mask"):
        for level in ("token", "sequence"):
            yield {"correction": mode, "correction_level": level}


def weights(
    log_weights: list[list[float]], lengths: list[int], **fields: object
) -> tuple[list[list[float]], dict[str, float]]:
    """What each token's gradient is multiplied by: on policy that of `grpo` is -A, and A is -R m here."""
    width = max(lengths)
    prox = torch.full((len(lengths), width), -1000.0, dtype=torch.float64)
    leaf = prox.clone().requires_grad_()
    behavior = prox - torch.tensor([row + [0.0] * (width - len(row)) for row in log_weights])
    mask = torch.tensor([[1] * m + [0] * (width - m) for m in lengths])
    advantages_R = -torch.tensor(lengths, dtype=torch.float64) * len(lengths)
    batch = Responses.from_padded(leaf, mask, advantages_R, behavior, proximal_logprobs=prox)
    output = build("grpo", **fields)(batch)
    output.loss.backward()
    assert leaf.grad is not None
    found = [row[:m].tolist() for row, m in zip(leaf.grad, lengths, strict=True)]
    return found, {name: value.item() for name, value in output.metrics.items()}


LOGS = [[math.log(4.0), math.log(0.25), math.log(1.5)], [math.log(0.4)], [math.log(1.9)]]


@pytest.mark.parametrize(
    ("mode", "level", "expected", "corrected"),
    [
        ("truncate", "token", [[2.0, 0.25, 1.5], [0.4], [1.9]], 1 / 5),
        ("mask", "token", [[0.0, 0.0, 1.5], [0.0], [1.9]], 3 / 5),
        ("truncate", "sequence", [[1.5, 1.5, 1.5], [0.4], [1.9]], 0.0),
        ("mask", "sequence", [[1.5, 1.5, 1.5], [0.0], [1.9]], 1 / 5),
    ],
)
def test_the_weight_is_truncated_or_masked_at_its_bounds(
    mode: str, level: str, expected: list[list[float]], corrected: float
):
    found, metrics = weights(LOGS, [3, 1, 1], correction=mode, correction_level=level)
    assert [x for row in found for x in row] == pytest.approx([x for row in expected for x in row])
    assert metrics["corrected_share"] == pytest.approx(corrected)


def test_the_bounds_are_fields_and_belong_to_what_is_kept():
    found, metrics = weights([[0.0], [0.0]], [1, 1], correction="mask", correction_low=1.0, correction_high=1.0)
    assert found == [[1.0], [1.0]]
    assert metrics["corrected_share"] == 0
    found, _ = weights(LOGS, [3, 1, 1], correction="truncate", correction_high=1.2)
    assert [x for row in found for x in row] == pytest.approx([1.2, 0.25, 1.2, 0.4, 1.2])
    found, _ = weights(LOGS, [3, 1, 1], correction="mask", correction_low=0.1, correction_high=3.0)
    assert [x for row in found for x in row] == pytest.approx([0.0, 0.25, 1.5, 0.4, 1.9])


@pytest.mark.parametrize("way", list(ways()), ids=str)
@pytest.mark.parametrize("name", CORRECTED)
@settings(max_examples=3)
@given(step=steps())
def test_with_the_proximal_policy_at_the_behavior_policy_nothing_is_corrected(
    name: str, way: dict[str, str], step: Step
):
    step = step.with_channels(proximal_logprobs=step.channels["behavior_logprobs"])
    found, plain = evaluate(step, build_with(name, **way)), evaluate(step, build_with(name))
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.gradient, plain.gradient, rtol=1e-12, atol=1e-14)
    assert found.metrics.pop("corrected_share") == 0
    assert found.metrics == plain.metrics


@pytest.mark.parametrize("name", CORRECTED)
def test_the_weight_multiplies_the_objective_taken_to_the_proximal_policy(name: str):
    """One token, 1.1 times as likely as at the start of the step, when it was 1.25 times as likely as when drawn."""
    gradients = []
    for behavior, fields in ((-2.0 - math.log(1.25), {"correction": "truncate"}), (-2.0, {})):
        leaf = torch.tensor([[-2.0 + math.log(1.1)]], dtype=torch.float64, requires_grad=True)
        proximal = torch.full((1, 1), -2.0, dtype=torch.float64)
        channels = {"proximal_logprobs": proximal, "values": torch.zeros_like(proximal)}
        batch = Responses.from_padded(
            leaf, torch.ones(1, 1), torch.tensor([-1.0]), torch.full_like(proximal, behavior), **channels,
            rewards_R=torch.tensor([-1.0]),
        )  # fmt: skip
        build_with(name, **fields)(batch).loss.backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.item())
    assert gradients[0] == pytest.approx(1.25 * gradients[1])
    assert gradients[1] != 0


def test_an_extreme_weight_is_finite():
    for way in ways():
        found, metrics = weights([[900.0, -900.0], [-900.0]], [2, 1], **way, correction_high=math.inf)
        assert all(math.isfinite(x) for row in found for x in row)
        assert math.isfinite(metrics["corrected_share"])
