"""What every objective promises: it is its formula, and however the step is cut, ordered or padded, it is the same."""

import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.errors import ObjectiveError
from driftproof.objectives import OBJECTIVES, Objective, Responses, build
from driftproof.types import Channel

from .formulas import CASES, Case
from .steps import CHANNELS, LEAVES, Result, Step, a_step, assert_same, evaluate, gradient, make_step, steps

few = settings(max_examples=8)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
each_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def test_every_objective_has_a_case_at_its_defaults():
    # A horizon has no default.
    assert set(OBJECTIVES) == {
        case.objective.name
        for case in CASES
        if all(getattr(case.objective, f.name) == f.default for f in fields(case.objective) if f.name != "horizon")
    }


def by_default(name: str) -> Objective:
    sums = OBJECTIVES[name].aggregation == "seq-mean-token-sum-norm"
    return build(name, horizon=8) if sums else build(name)


def token_weights(step: Step, objective: Objective) -> list[float]:
    """What the loss of a token of each response is multiplied by."""
    divisors = {
        "token-mean": [step.tokens] * step.size,
        "seq-mean-token-mean": [step.size * length for length in step.lengths_R.tolist()],
        "seq-mean-token-sum-norm": [step.size * (objective.horizon or 0)] * step.size,
    }
    return [1 / max(divisor, 1) for divisor in divisors[objective.aggregation]]


@each_case
@few
@given(step=steps())
def test_loss_and_gradient_are_the_formula(case: Case, step: Step):
    found = evaluate(step, case.objective)
    responses, weights = step.written(), token_weights(step, case.objective)
    loss = sum(
        weight * sum(case.losses(response, response, step)) for weight, response in zip(weights, responses, strict=True)
    )
    slopes = [
        weight * slope
        for weight, response in zip(weights, responses, strict=True)
        for slope in case.slopes(response, step)
    ]
    assert found.loss.item() == pytest.approx(loss, rel=1e-9, abs=1e-11)
    assert found.gradient[0].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-12)
    token_weights_N = torch.tensor(weights, dtype=torch.float64).repeat_interleave(step.lengths_R)
    torch.testing.assert_close(found.gradient[1], -case.objective.entropy_bonus * token_weights_N, rtol=1e-12, atol=0)


@each_case
def test_the_gradient_agrees_with_finite_differences(case: Case):
    """Of the formula, with what is under a stop-gradient held fixed."""
    step = a_step(seed=3)
    responses = step.written()
    expected = []
    for weight, response in zip(token_weights(step, case.objective), responses, strict=True):
        for token in range(len(response.logprobs)):
            ends = []
            for move in (1e-6, -1e-6):
                moved = [value + move * (place == token) for place, value in enumerate(response.logprobs)]
                ends.append(sum(case.losses(replace(response, logprobs=moved), response, step)))
            expected.append(weight * (ends[0] - ends[1]) / 2e-6)
    assert evaluate(step, case.objective).gradient[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if not case.stops], ids=lambda case: case.label)
def test_without_a_stop_gradient_autograd_agrees_with_finite_differences_of_the_loss(case: Case):
    step = a_step(seed=3)

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return case.objective(step.whole(dict(zip(LEAVES, leaves, strict=True)))).loss

    assert torch.autograd.gradcheck(loss, tuple(step.leaves().values()), eps=1e-6, atol=1e-7, rtol=1e-5)


@each_case
@few
@given(step=steps(), data=st.data())
def test_the_split_into_micro_batches_and_their_order_do_not_matter(case: Case, step: Step, data: st.DataObject):
    order = data.draw(st.permutations(range(step.size)))
    cuts = sorted(data.draw(st.sets(st.integers(1, step.size), max_size=4)) | {0, step.size})
    parts = [order[start:end] for start, end in pairwise(cuts)] if case.objective.separable else [order]
    assert_same(evaluate(step, case.objective, parts), evaluate(step, case.objective))


def test_what_is_not_separable_refuses_a_part_of_a_step():
    step = a_step()
    assert [name for name in OBJECTIVES if not by_default(name).separable] == ["m2po"]
    with pytest.raises(
        ObjectiveError, match=f"m2po needs the whole step at once, to find its clip; got 3 of {step.tokens}"
    ):
        evaluate(step, build("m2po"), [[0, 1], range(2, step.size)])
    # A part that holds every token is no whole step either: it lacks the empty responses.
    with pytest.raises(ObjectiveError, match="m2po needs the whole step at once"):
        evaluate(step, build("m2po"), [[n for n in range(step.size) if step.lengths_R[n]]])


@each_case
@few
@given(step=steps(), seed=st.integers(0, 2**32 - 1))
def test_padding_and_holes_in_the_mask_do_not_matter(case: Case, step: Step, seed: int):
    """Masked positions, which hold NaN here, get no gradient."""
    generator = torch.Generator().manual_seed(seed)
    width = int(step.lengths_R.max()) + 3
    places = [torch.randperm(width, generator=generator)[:m].sort().values for m in step.lengths_R.tolist()]
    mask_RT = torch.zeros(step.size, width)
    for row, where in enumerate(places):
        mask_RT[row, where] = 1
    padded = {}
    for name in CHANNELS:
        padded[name] = torch.full_like(mask_RT, math.nan, dtype=torch.float64)
        padded[name][mask_RT.bool()] = step.channels[name]
    leaves = {name: padded[name].requires_grad_() for name in LEAVES}
    logprobs_RT = padded.pop("logprobs")
    batch = Responses.from_padded(
        logprobs_RT, mask_RT, step.advantages_R, rewards_R=step.rewards_R, group_R=step.group_R, **padded
    )
    output = case.objective(batch)
    output.loss.backward()
    found_RT = gradient(leaves)
    assert not found_RT[:, mask_RT == 0].any()
    found = Result(output.loss.detach(), found_RT[:, mask_RT.bool()], output.metrics)
    assert_same(found, evaluate(step, case.objective))


@each_objective
def test_equal_rewards_teach_nothing(name: str):
    step = make_step([3, 1, 2], [0.1, 0.1, 0.1], [0, 0, 0])
    if name == "ppo":
        # Its baseline is the critic; where that foresees the reward there is nothing to learn either.
        exact = torch.full_like(step.channels["values"], 0.1)
        step = step.with_channels(values=exact, old_values=exact)
    found = evaluate(step, by_default(name))
    if name == "asymre":
        assert found.loss.item() == pytest.approx(0.1 * step.nll_R(step.channels["logprobs"]).mean().item())
    else:
        assert found.loss.item() == pytest.approx(0, abs=1e-15)
        torch.testing.assert_close(found.gradient, torch.zeros_like(found.gradient), rtol=0, atol=1e-15)


@each_case
def test_empty_responses_are_counted_but_contribute_nothing(case: Case):
    with_empty = make_step([0, 3, 0, 2], [1.0, 0.0, 0.0, 1.0], [0, 0, 0, 0])
    found = evaluate(with_empty, case.objective)
    expected = evaluate(with_empty.only([1, 3]), case.objective)
    # Half of the responses are empty; a mean over tokens does not see them.
    share = 1.0 if case.objective.aggregation == "token-mean" else 0.5
    assert_same(found, Result(share * expected.loss, share * expected.gradient, found.metrics))


@each_case
def test_a_step_without_a_token_or_a_response_is_zero(case: Case):
    for step in (make_step([0, 0], [1.0, 0.0], [0, 0]), make_step([], [], [])):
        found = evaluate(step, case.objective)
        assert found.loss.item() == 0
        assert found.gradient.shape == (3, 0)
        assert all(math.isfinite(value) for value in found.metrics.values())
        assert all(value == 0 for name, value in found.metrics.items() if name != "clip_high")


@each_case
def test_one_response_of_one_token_is_finite(case: Case):
    for reward in (1.0, 0.0, math.nan):
        step = make_step([1], [reward], [0])
        for advantage in (1.0, -1.0, 0.0):
            found = evaluate(replace(step, advantages_R=torch.tensor([advantage], dtype=torch.float64)), case.objective)
            assert all(torch.isfinite(values).all() for values in (found.loss, found.gradient, *found.metrics.values()))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vocabulary_of_one_token_moves_nothing(case: Case, dtype: torch.dtype):
    """Every log-prob is exactly 0, so the NLL is, the divergences are, and the logit has no gradient."""
    logits = torch.randn(2, 3, 1, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logprobs_RT = logits.log_softmax(-1).squeeze(-1)
    zero_RT = torch.zeros(2, 3, dtype=dtype)
    batch = Responses.from_padded(
        logprobs_RT,
        torch.tensor([[1, 1, 1], [1, 1, 0]]),
        torch.tensor([0.5, -0.5]),
        rewards_R=torch.tensor([1.0, 0.0]),
        **{name: zero_RT for name in CHANNELS if name != "logprobs"},
    )
    output = case.objective(batch)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert logits.grad is not None
    assert not logits.grad.any()
    assert all(math.isfinite(value) for value in output.metrics.values())


@each_case
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("new", "old"), [(-1e-9, -900.0), (-900.0, -1e-9), (-900.0, -900.0), (0.0, 0.0)])
def test_extreme_probabilities_stay_finite(case: Case, advantage: float, new: float, old: float):
    """In float32 as well, where exp(-900) and the ratio are 0 or out of range."""
    for dtype in (torch.float32, torch.float64):
        leaf = torch.tensor([[new, -1.0, new], [-1.0, -2.0, new]], dtype=dtype, requires_grad=True)
        other = torch.tensor([[old, -1.1, old], [-0.9, -2.1, old]], dtype=dtype)
        channels = {name: other for name in CHANNELS if name.endswith("logprobs") and name != "logprobs"}
        channels |= {name: torch.zeros_like(other) for name in ("entropy", "values", "old_values")}
        rewards_R = torch.tensor([1.0, 0.0])
        batch = Responses.from_padded(
            leaf, torch.ones(2, 3), torch.tensor([advantage, -advantage]), rewards_R=rewards_R, **channels
        )
        output = case.objective(batch)
        output.loss.backward()
        assert leaf.grad is not None
        assert torch.isfinite(output.loss)
        assert torch.isfinite(leaf.grad).all()
        assert all(math.isfinite(value) for value in output.metrics.values())


@each_case
def test_float32_agrees_with_float64_and_metrics_carry_no_gradient(case: Case):
    step = a_step(seed=5)
    found = evaluate(step.float32(), case.objective)
    assert found.loss.dtype == torch.float32
    expected = evaluate(step, case.objective)
    assert_same(Result(found.loss.double(), found.gradient.double(), found.metrics), expected, rtol=2e-4, atol=2e-5)
    output = case.objective(step.whole(step.leaves()))
    assert not any(value.requires_grad for value in output.metrics.values())
    assert all(value.shape == () for value in output.metrics.values())


BEHAVIOR, PROXIMAL, REFERENCE = Channel.BEHAVIOR_LOGPROBS, Channel.PROXIMAL_LOGPROBS, Channel.REFERENCE_LOGPROBS
RATIO = {"grpo", "dr-grpo", "gspo", "cispo", "dppo-tv", "dppo-kl", "drpo", "simple-po", "topr", "m2po"}


@each_objective
def test_needs_are_declared(name: str):
    expected = {Channel.BEHAVIOR_LOGPROBS} if name in RATIO | {"ppo"} else set()
    expected |= {Channel.VALUES} if name == "ppo" else set()
    objective = by_default(name)
    assert objective.needs == objective.channels == expected
    assert replace(objective, kl=0.1).needs == expected | {REFERENCE}
    assert replace(objective, entropy_bonus=-0.1).needs == expected | {Channel.ENTROPY}
    if expected:
        assert replace(objective, correction="mask").needs == expected | {PROXIMAL}
    else:
        assert not hasattr(objective, "correction")


@each_case
def test_it_names_the_channel_that_it_lacks_and_reads_no_other(case: Case):
    step = a_step()
    needs = case.objective.needs
    whole = step.whole(step.leaves())
    bare = replace(whole, **{f"{channel}_N": None for channel in Channel if channel not in needs}, old_values_N=None)
    if Channel.VALUES in needs:
        bare = replace(bare, old_values_N=whole.old_values_N)
    assert case.objective(bare).loss == case.objective(whole).loss
    for channel in needs:
        with pytest.raises(ObjectiveError, match=f"objective '{case.objective.name}' needs {channel}, and the batch"):
            case.objective(replace(whole, **{f"{channel}_N": None}))


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


@pytest.mark.parametrize(("estimator", "expected"), [("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 1 - 0.5)])
def test_divergence_estimators_by_hand(estimator: str, expected: float):
    """Two tokens: one unmoved, one with log pi - log ref = -1/2."""
    batch = Responses.from_padded(
        torch.tensor([[-1.0, -2.0]]),
        torch.ones(1, 2),
        torch.zeros(1),
        reference_logprobs=torch.tensor([[-1.0, -1.5]]),
    )
    output = build("naive", kl=3.0, kl_estimator=estimator)(batch)
    assert output.metrics["kl"].item() == pytest.approx(expected / 2)
    assert output.loss.item() == pytest.approx(3.0 * expected / 2)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_divergence_estimators_have_the_mean_or_the_gradient_that_is_claimed(estimator: str):
    """Under the policy itself: k1 and k3 are KL(pi, ref) on average, k2's gradient is its, k3's that of KL(ref, pi)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_()
    reference = torch.randn(5, dtype=torch.float64, generator=generator).log_softmax(-1)
    policy = logits.log_softmax(-1)
    # Every token once, as a response of its own; weighed by its probability this is the exact average.
    slopes, mean = torch.zeros(5, dtype=torch.float64), 0.0
    for token, probability in enumerate(policy.detach().exp()):
        batch = Responses.from_padded(
            policy[token].view(1, 1), torch.ones(1, 1), torch.zeros(1), reference_logprobs=reference[token].view(1, 1)
        )
        output = build("naive", kl=1.0, kl_estimator=estimator)(batch)
        slopes += probability * torch.autograd.grad(output.loss, logits, retain_graph=True)[0]
        mean += probability.item() * output.metrics["kl"].item()
    forward = (policy.exp() * (policy - reference)).sum()
    backward = (reference.exp() * (reference - policy)).sum()
    claimed = {"k1": 0 * policy.sum(), "k2": forward, "k3": backward}[estimator]
    torch.testing.assert_close(slopes, torch.autograd.grad(claimed, logits)[0], rtol=1e-10, atol=1e-12)
    if estimator != "k2":
        assert mean == pytest.approx(forward.item())


DEFAULTS: dict[str, tuple[str, dict[str, object]]] = {
    "naive": ("seq-mean-token-mean", {}),
    "gpg": ("token-mean", {"alpha": "valid-groups"}),
    "spo": ("seq-mean-token-mean", {"alpha": 0.2}),
    "asympo": ("seq-mean-token-mean", {"floor": 1e-2, "stable": False, "p_low": 0.02, "p_high": 0.97}),
    "scaled-asympo": (
        "seq-mean-token-mean",
        {"floor": 1e-2, "stable": False, "p_low": 0.02, "p_high": 0.97, "alpha": 0.2},
    ),
    "asymre": ("seq-mean-token-mean", {"baseline_shift": -0.1}),
    "rft": ("seq-mean-token-mean", {}),
    "ppo": (
        "token-mean",
        {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0, "discount": 1.0, "gae_lambda": 0.95}
        | {"value_clip": 0.2, "value_coefficient": 0.1},
    ),
    "grpo": ("seq-mean-token-mean", {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}),
    "dr-grpo": ("seq-mean-token-sum-norm", {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}),
    "gspo": ("seq-mean-token-mean", {"clip_low": 3e-4, "clip_high": 4e-4}),
    "cispo": ("token-mean", {"ratio_low": 0.0, "ratio_high": 5.0}),
    "dppo-tv": ("seq-mean-token-sum-norm", {"delta": 0.15, "ratio_high": math.inf}),
    "dppo-kl": ("seq-mean-token-sum-norm", {"delta": 0.05, "ratio_high": math.inf}),
    "drpo": ("seq-mean-token-sum-norm", {"delta": 0.5}),
    "simple-po": ("seq-mean-token-sum-norm", {"epsilon": 0.2}),
    "topr": ("seq-mean-token-mean", {"level": "sequence", "ratio_low": 0.0, "ratio_high": 1.0}),
    "m2po": ("token-mean", {"budget": 0.04, "least_low": 0.7, "least_high": 1.5}),
}
TERMS = {"kl": 0.0, "kl_estimator": "k3", "entropy_bonus": 0.0}
CORRECTION = {"correction": "none", "correction_level": "token", "correction_low": 0.5, "correction_high": 2.0}


@each_objective
def test_fields_have_the_defaults_of_the_sources(name: str):
    aggregation, own = DEFAULTS[name]
    expected = {"aggregation": aggregation, "horizon": None} | TERMS | own
    if name in RATIO | {"ppo"}:
        expected |= CORRECTION
    assert {f.name: f.default for f in fields(OBJECTIVES[name])} == expected


@each_objective
def test_a_docstring_names_its_source(name: str):
    assert re.search(r"Source: .*arXiv \d{4}\.\d{5}", (OBJECTIVES[name].__doc__ or "").replace("\n", " "))


def bounds() -> list[tuple[str, str, object]]:
    """(objective, field, a value out of its range) of every number and choice."""
    negative = [
        *((name, "kl") for name in OBJECTIVES),
        *((name, field) for name in ("ppo", "grpo", "dr-grpo", "gspo") for field in ("clip_low", "clip_high")),
        *((name, field) for name in RATIO | {"ppo"} for field in ("correction_low", "correction_high")),
        *(("ppo", field) for field in ("discount", "gae_lambda", "value_clip", "value_coefficient")),
        *(("asympo", field) for field in ("floor", "p_low", "p_high")),
        *(("m2po", field) for field in ("budget", "least_low", "least_high")),
        *((name, field) for name in ("cispo", "topr") for field in ("ratio_low", "ratio_high")),
        *((name, "delta") for name in ("dppo-tv", "dppo-kl", "drpo")),
        *((name, "ratio_high") for name in ("dppo-tv", "dppo-kl")),
        *(("spo", "alpha"), ("scaled-asympo", "alpha"), ("gpg", "alpha"), ("simple-po", "epsilon")),
    ]
    above_one = [
        *((name, "clip_low") for name in ("ppo", "grpo", "dr-grpo", "gspo")),
        *((name, "correction_low") for name in RATIO | {"ppo"}),
        *(("spo", "alpha"), ("scaled-asympo", "alpha")),
        *(("dppo-tv", "delta"), ("ppo", "discount"), ("ppo", "gae_lambda"), ("m2po", "least_low")),
        *(("asympo", "p_low"), ("asympo", "p_high"), ("cispo", "ratio_low"), ("topr", "ratio_low")),
    ]
    below_one = [
        *((name, "correction_high") for name in RATIO | {"ppo"}),
        *((name, "dual_clip") for name in ("ppo", "grpo", "dr-grpo")),
        *(("cispo", "ratio_high"), ("dppo-tv", "ratio_high"), ("dppo-kl", "ratio_high"), ("m2po", "least_high")),
    ]
    return [
        *((name, field, -0.1) for name, field in negative),
        *((name, field, 1.1) for name, field in above_one),
        *((name, field, 0.9) for name, field in below_one),
        *((name, field, 0.0) for name, field in (("drpo", "delta"), ("simple-po", "epsilon"))),
        *((name, "entropy_bonus", math.nan) for name in OBJECTIVES),
        ("asympo", "floor", 11.0),
        ("asympo", "p_high", 0.01),
        ("asymre", "baseline_shift", math.nan),
    ]


@pytest.mark.parametrize(("name", "field", "value"), sorted(bounds(), key=str))
def test_a_number_out_of_range_is_refused(name: str, field: str, value: object):
    for bad in (value, True, "off"):
        if bad == "off" and (name, field) == ("gpg", "alpha"):
            continue
        with pytest.raises(ObjectiveError) as caught:
            replace(by_default(name), **{field: bad})
        assert f"{name}: {field} is {bad!r}; it must be a number from " in str(caught.value)


def accepted() -> list[tuple[str, dict[str, object]]]:
    infinite = {"grpo": ["clip_high", "dual_clip"], "ppo": ["clip_high", "dual_clip", "value_clip"], "m2po": ["budget"]}
    ratios = {name: ["ratio_high"] for name in ("cispo", "topr", "dppo-tv", "dppo-kl")}
    return [
        *((name, {field: math.inf}) for name, names in (infinite | ratios).items() for field in names),
        ("spo", {"alpha": 1}),
        ("gpg", {"alpha": 3}),
        ("asympo", {"floor": 0, "p_low": 0, "p_high": 1}),
        ("asymre", {"baseline_shift": -5}),
        ("dppo-kl", {"delta": 1.5}),
        ("drpo", {"delta": 12.5}),
        ("grpo", {"correction": "mask", "correction_low": 0, "correction_high": 1}),
    ]


@pytest.mark.parametrize(("name", "changes"), accepted())
def test_the_ends_of_a_range_belong_to_it(name: str, changes: dict[str, object]):
    replace(by_default(name), **changes)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("asymp", {}, "unknown objective 'asymp'; did you mean 'asympo'? valid: asympo, asymre, cispo, dppo-kl, "),
        ("zzz", {}, "unknown objective 'zzz'; valid: asympo, "),
        ("spo", {"alfa": 1}, "objective 'spo': unknown field 'alfa'; did you mean 'alpha'? valid: "),
        (
            "naive",
            {"name": "x"},
            "objective 'naive': unknown field 'name'; valid: aggregation, entropy_bonus, horizon, ",
        ),
        ("naive", {"separable": True}, "objective 'naive': unknown field 'separable'; valid: "),
        (
            "naive",
            {"aggregation": "mean"},
            "naive: unknown aggregation 'mean'; valid: seq-mean-token-mean, token-mean, ",
        ),
        ("naive", {"horizon": 5}, "naive: `horizon` (tokens, usually the longest response allowed) belongs to"),
        ("spo", {"aggregation": "seq-mean-token-sum-norm"}, "aggregation 'seq-mean-token-sum-norm' and horizon None"),
        ("dr-grpo", {}, "dr-grpo: `horizon` (tokens, usually the longest response allowed) belongs to aggregation"),
        ("dr-grpo", {"horizon": 0}, "dr-grpo: horizon is 0; it must be a number from 1 to inf"),
        ("dr-grpo", {"horizon": "8"}, "dr-grpo: horizon is '8'; it must be a number"),
        (
            "asympo",
            {"aggregation": "token-mean"},
            "asympo: aggregation is 'token-mean'; it divides by a response's own",
        ),
        ("gspo", {"aggregation": "token-mean"}, "gspo: aggregation is 'token-mean'; a response has one ratio, which"),
        ("asympo", {"stable": "False"}, "asympo: stable is 'False'; it must be true or false"),
        ("asympo", {"stable": 1}, "asympo: stable is 1; it must be true or false"),
        ("gpg", {"alpha": "verl"}, "gpg: unknown alpha 'verl'; valid: valid-groups, nonzero-rewards, or a number"),
        ("topr", {"level": "word"}, "topr: unknown level 'word'; valid: sequence, token"),
        ("naive", {"kl_estimator": "k4"}, "naive: unknown kl_estimator 'k4'; valid: k1, k2, k3"),
        ("grpo", {"correction": "clip"}, "grpo: unknown correction 'clip'; valid: none, truncate, mask"),
        ("grpo", {"correction_level": "word"}, "grpo: unknown correction_level 'word'; valid: token, sequence"),
        ("topr", {"ratio_low": 0.5, "ratio_high": 0.4}, "topr: ratio_high is 0.4; it must be a number from 0.5 to inf"),
    ],
)
def test_build_says_what_is_wrong_and_what_is_valid(name: str, fields: dict[str, object], message: str):
    with pytest.raises(ObjectiveError) as caught:
        build(name, **fields)
    assert message in str(caught.value)


def changed(objective: str, **changes: object) -> Callable[[], Objective]:
    return lambda: replace(by_default(objective), **changes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (changed("spo", alpha=1.0), changed("naive")),
        (changed("spo", alpha=0.0), changed("rft")),
        (changed("gpg", alpha=1.0), changed("naive", aggregation="token-mean")),
        (changed("asymre", baseline_shift=0.0), changed("naive")),
        (changed("dr-grpo"), changed("grpo", aggregation="seq-mean-token-sum-norm", horizon=8)),
        (changed("topr", ratio_low=1.0), changed("naive")),
        (changed("topr", ratio_high=0.0), changed("rft")),
    ],
    ids=["spo-1", "spo-0", "gpg-1", "asymre-0", "dr-grpo", "topr-1", "topr-0"],
)
@few
@given(step=steps())
def test_two_objectives_are_one(one: Callable[[], Objective], other: Callable[[], Objective], step: Step):
    left, right = evaluate(step, one()), evaluate(step, other())
    assert_same(Result(left.loss, left.gradient, {}), Result(right.loss, right.gradient, {}))


@pytest.mark.parametrize("name", sorted(RATIO))
@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"])
@few
@given(step=steps())
def test_on_policy_every_ratio_objective_has_the_gradient_of_naive(name: str, aggregation: str, step: Step):
    if name == "gspo" and aggregation != "seq-mean-token-mean":
        return
    common = {"aggregation": aggregation, "horizon": 7 if aggregation.endswith("norm") else None}
    found = evaluate(step.on_policy(), build(name, **common))
    naive = evaluate(step, build("naive", **common))
    torch.testing.assert_close(found.gradient, naive.gradient, rtol=1e-12, atol=1e-15)
    shares = [value for metric, value in found.metrics.items() if metric.endswith("share")]
    assert shares
    assert not any(shares)


def test_an_objective_of_ones_own_is_named_by_where_it_is():
    found = build("studies.ablations:Normalized", alpha=0.5)
    assert (found.name, found.needs) == ("normalized", frozenset())
    with pytest.raises(ObjectiveError, match="unknown field 'alfa'; did you mean 'alpha'"):
        build("studies.ablations:Normalized", alfa=0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at:All", "objective 'nowhere.at:All' cannot be imported: No module named 'nowhere'"),
        ("studies.ablations:Missing", "cannot be imported: module .* has no attribute 'Missing'"),
        ("studies.ablations:math", "is no subclass of driftproof.objectives.Objective"),
        ("asymp", "did you mean 'asympo'.*or your own 'package.module:Class'"),
    ],
)
def test_what_is_no_objective_is_refused(name: str, message: str):
    with pytest.raises(ObjectiveError, match=message):
        build(name)
