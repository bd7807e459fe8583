"""Every objective written a second time, one response and one token after the other, in plain Python.

`losses` are the token losses before aggregation, with what is under a stop-gradient taken from `frozen`; `slopes` are
the derivatives in the token's log-prob, in closed form. Between them they pin loss, gradient and stop-gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import fmean

from driftproof.objectives import Objective, build

from .steps import Step, Written

Losses = Callable[[Written, Written, Step], list[float]]
Slopes = Callable[[Written, Step], list[float]]


@dataclass(frozen=True)
class Case:
    """An objective and its formula."""

    objective: Objective
    losses: Losses
    slopes: Slopes
    stops: bool = False
    """Whether a factor under a stop-gradient depends on the current policy."""

    @property
    def label(self) -> str:
        return label(self.objective)


def label(objective: Objective) -> str:
    changed = [
        f"{f.name}={getattr(objective, f.name)}" for f in fields(objective) if getattr(objective, f.name) != f.default
    ]
    return " ".join([objective.name, *changed])


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def weighted(weight: Callable[[Written, Step], list[float]]) -> tuple[Losses, Slopes]:
    """-sg(weight) log pi."""

    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        return [-w * logprob for w, logprob in zip(weight(frozen, step), free.logprobs, strict=True)]

    return losses, lambda response, step: [-w for w in weight(response, step)]


def per_response(weight: Callable[[Written, Step], float]) -> tuple[Losses, Slopes]:
    return weighted(lambda response, step: [weight(response, step)] * len(response.logprobs))


def per_token(weight: Callable[[float, float, float], float]) -> tuple[Losses, Slopes]:
    """A weight of (advantage, pi, mu)."""

    def weights(response: Written, step: Step) -> list[float]:
        return [
            weight(response.advantage, math.exp(new), math.exp(old))
            for new, old in zip(response.logprobs, response.behavior_logprobs, strict=True)
        ]

    return weighted(weights)


def gpg_alpha(alpha: float | str, step: Step) -> float:
    if not isinstance(alpha, str):
        return alpha
    counted = step.valid_responses if alpha == "valid-groups" else step.nonzero_rewards
    return step.size / counted if counted else 1.0


def asymre(shift: float) -> tuple[Losses, Slopes]:
    return per_response(lambda response, _: 0.0 if math.isnan(response.reward) else response.advantage - shift)


def asympo(floor: float, low: float = -math.inf, high: float = math.inf, alpha: float = 1.0) -> tuple[Losses, Slopes]:
    """`low` and `high` are the log-probs that negatives and positives are clipped to."""

    def clipped(response: Written, logprob: float) -> float:
        return max(logprob, low) if response.advantage < 0 else min(logprob, high)

    def weight(response: Written) -> float:
        nll = fmean(-clipped(response, logprob) for logprob in response.logprobs)
        return response.advantage * (alpha if response.advantage < 0 else 1.0) / max(nll, floor)

    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        return [-weight(frozen) * clipped(frozen, logprob) for logprob in free.logprobs]

    def slopes(response: Written, step: Step) -> list[float]:
        return [-weight(response) * (clipped(response, logprob) == logprob) for logprob in response.logprobs]

    return losses, slopes


def clipped_loss(ratio: float, advantage: float, low: float, high: float, dual: float = math.inf) -> float:
    if advantage >= 0:
        return -min(ratio, high) * advantage
    return -min(max(ratio, low), dual) * advantage


def clipped_slope(ratio: float, advantage: float, low: float, high: float, dual: float = math.inf) -> float:
    stopped = ratio > high if advantage >= 0 else (ratio < low or ratio > dual)
    return 0.0 if stopped else -ratio * advantage


def clipped(low: float, high: float, dual: float = math.inf) -> tuple[Losses, Slopes]:
    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        return [clipped_loss(ratio, frozen.advantage, low, high, dual) for ratio in free.ratios]

    def slopes(response: Written, step: Step) -> list[float]:
        return [clipped_slope(ratio, response.advantage, low, high, dual) for ratio in response.ratios]

    return losses, slopes


def gspo(low: float, high: float) -> tuple[Losses, Slopes]:
    def ratio(response: Written) -> float:
        return math.exp(fmean(map(math.log, response.ratios)))

    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        return [clipped_loss(ratio(free), frozen.advantage, low, high) for _ in free.logprobs]

    def slopes(response: Written, step: Step) -> list[float]:
        return [clipped_slope(ratio(response), response.advantage, low, high) for _ in response.logprobs]

    return losses, slopes


def m2po_bounds(step: Step, budget: float, least_low: float, least_high: float) -> tuple[float, float]:
    """The clip of the step, its cap found by bisection."""
    squares = [
        math.log(ratio) ** 2
        for response in step.written()
        for ratio in response.ratios
        if response.advantage * (ratio - 1) > 0
    ]
    if sum(squares) <= budget * len(squares):
        return 0.0, math.inf
    low, high = 0.0, max(squares)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(min(square, middle) for square in squares) > budget * len(squares):
            high = middle
        else:
            low = middle
    return min(math.exp(-math.sqrt(low)), least_low), max(math.exp(math.sqrt(low)), least_high)


def m2po(budget: float, least_low: float, least_high: float) -> tuple[Losses, Slopes]:
    def bounds(step: Step) -> tuple[float, float]:
        return m2po_bounds(step, budget, least_low, least_high)

    return (
        lambda free, frozen, step: clipped(*bounds(step))[0](free, frozen, step),
        lambda response, step: clipped(*bounds(step))[1](response, step),
    )


def penalized(scale: Callable[[float], float]) -> tuple[Losses, Slopes]:
    """-(rho A - |A| scale(mu) (rho - 1)^2 / 2)."""

    def terms(response: Written) -> list[tuple[float, float]]:
        return [
            (ratio, scale(math.exp(old)))
            for ratio, old in zip(response.ratios, response.behavior_logprobs, strict=True)
        ]

    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        advantage = frozen.advantage
        return [-(ratio * advantage - abs(advantage) * s * (ratio - 1) ** 2 / 2) for ratio, s in terms(free)]

    def slopes(response: Written, step: Step) -> list[float]:
        advantage = response.advantage
        return [
            -ratio * advantage * (1 - sign(advantage * (ratio - 1)) * abs(ratio - 1) * s)
            for ratio, s in terms(response)
        ]

    return losses, slopes


def cispo_weight(low: float, high: float, advantage: float, pi: float, mu: float) -> float:
    return clip(pi / mu, low, high) * advantage


def tv_weight(delta: float, ratio_high: float, advantage: float, pi: float, mu: float) -> float:
    masked = pi - mu > delta if advantage > 0 else pi - mu < -delta
    return 0.0 if masked else min(pi / mu, ratio_high) * advantage


def kl_weight(delta: float, ratio_high: float, advantage: float, pi: float, mu: float) -> float:
    divergence = mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))
    moves_on = pi > mu if advantage > 0 else pi < mu
    return 0.0 if divergence > delta and moves_on else min(pi / mu, ratio_high) * advantage


def topr_sequence(response: Written, step: Step) -> float:
    return response.advantage if response.advantage >= 0 else response.advantage * min(math.prod(response.ratios), 1.0)


def topr_token(low: float, high: float, advantage: float, pi: float, mu: float) -> float:
    return advantage if advantage >= 0 else advantage * clip(pi / mu, low, high)


def estimate(response: Written, discount: float, gae_lambda: float) -> list[float]:
    """Generalised advantage estimates, backwards from the end; 0 without a reward."""
    advantages = []
    later, next_value, reward = 0.0, 0.0, response.reward
    for value in reversed(response.old_values):
        later = reward + discount * next_value - value + discount * gae_lambda * later
        advantages.append(later)
        next_value, reward = value, 0.0
    return [0.0] * len(advantages) if math.isnan(response.reward) else advantages[::-1]


def value_loss(value: float, old: float, advantage: float, value_clip: float) -> float:
    target = advantage + old
    return max((value - target) ** 2, (clip(value, old - value_clip, old + value_clip) - target) ** 2) / 2


def ppo(
    discount: float = 1.0, gae_lambda: float = 0.95, value_clip: float = 0.2, value_coefficient: float = 0.1
) -> tuple[Losses, Slopes]:
    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        result = []
        for token, advantage in enumerate(estimate(frozen, discount, gae_lambda)):
            critic = value_loss(free.values[token], frozen.old_values[token], advantage, value_clip)
            critic = 0.0 if math.isnan(frozen.reward) else critic
            actor = clipped_loss(free.ratios[token], advantage, 0.8, 1.2, 3.0)
            result.append(actor + value_coefficient * critic)
        return result

    def slopes(response: Written, step: Step) -> list[float]:
        advantages = estimate(response, discount, gae_lambda)
        return [
            clipped_slope(ratio, advantage, 0.8, 1.2, 3.0)
            for ratio, advantage in zip(response.ratios, advantages, strict=True)
        ]

    return losses, slopes


def corrected(formula: tuple[Losses, Slopes], mode: str, level: str, low: float = 0.5, high: float = 2.0):
    """The same losses with their ratio taken to the proximal policy, times the weight of proximal to behavior."""

    def weights(response: Written) -> list[float]:
        logs = [
            proximal - behavior
            for proximal, behavior in zip(response.proximal_logprobs, response.behavior_logprobs, strict=True)
        ]
        ratios = [math.exp(sum(logs) if level == "sequence" else log) for log in logs]
        if mode == "truncate":
            return [min(ratio, high) for ratio in ratios]
        return [ratio if low <= ratio <= high else 0.0 for ratio in ratios]

    def to_proximal(response: Written) -> Written:
        return replace(response, behavior_logprobs=response.proximal_logprobs)

    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        own = formula[0](to_proximal(free), to_proximal(frozen), step)
        return [weight * loss for weight, loss in zip(weights(frozen), own, strict=True)]

    def slopes(response: Written, step: Step) -> list[float]:
        own = formula[1](to_proximal(response), step)
        return [weight * slope for weight, slope in zip(weights(response), own, strict=True)]

    return losses, slopes


DIVERGENCES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "k1": (lambda d: d, lambda d: 1.0),
    "k2": (lambda d: d**2 / 2, lambda d: d),
    "k3": (lambda d: math.exp(-d) - 1 + d, lambda d: 1 - math.exp(-d)),
}


def with_kl(formula: tuple[Losses, Slopes], coefficient: float, estimator: str) -> tuple[Losses, Slopes]:
    value, derivative = DIVERGENCES[estimator]

    def differences(response: Written) -> list[float]:
        return [new - old for new, old in zip(response.logprobs, response.reference_logprobs, strict=True)]

    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        own = formula[0](free, frozen, step)
        return [loss + coefficient * value(d) for loss, d in zip(own, differences(free), strict=True)]

    def slopes(response: Written, step: Step) -> list[float]:
        own = formula[1](response, step)
        return [slope + coefficient * derivative(d) for slope, d in zip(own, differences(response), strict=True)]

    return losses, slopes


def with_entropy(formula: tuple[Losses, Slopes], bonus: float) -> tuple[Losses, Slopes]:
    def losses(free: Written, frozen: Written, step: Step) -> list[float]:
        return [loss - bonus * h for loss, h in zip(formula[0](free, frozen, step), free.entropy, strict=True)]

    return losses, formula[1]


NAIVE = per_response(lambda response, _: response.advantage)
RFT = per_response(lambda response, _: max(response.advantage, 0.0))
GRPO = clipped(0.8, 1.2, 3.0)
GSPO = gspo(1 - 3e-4, 1 + 4e-4)
SUM = {"aggregation": "seq-mean-token-sum-norm", "horizon": 9}
MEAN = {"aggregation": "token-mean"}
INFINITY = math.inf


def gpg(alpha: float | str) -> tuple[Losses, Slopes]:
    return per_response(lambda response, step: gpg_alpha(alpha, step) * response.advantage)


def spo(alpha: float) -> tuple[Losses, Slopes]:
    return per_response(lambda response, _: response.advantage * (alpha if response.advantage < 0 else 1.0))


CASES = [
    Case(build("naive"), *NAIVE),
    Case(build("naive", **MEAN), *NAIVE),
    Case(build("naive", **SUM), *NAIVE),
    Case(build("gpg"), *gpg("valid-groups")),
    Case(build("gpg", alpha="nonzero-rewards"), *gpg("nonzero-rewards")),
    Case(build("gpg", alpha=0.5, aggregation="seq-mean-token-mean"), *gpg(0.5)),
    Case(build("spo"), *spo(0.2)),
    Case(build("spo", alpha=0.7, **MEAN), *spo(0.7)),
    Case(build("asympo"), *asympo(1e-2), stops=True),
    Case(build("asympo", floor=0.0), *asympo(0.0), stops=True),
    Case(build("asympo", floor=1.0), *asympo(1.0), stops=True),
    Case(build("asympo", stable=True), *asympo(1e-2, math.log(0.02), math.log(0.97)), stops=True),
    Case(
        build("asympo", stable=True, floor=0.0, p_low=0.3, p_high=0.5),
        *asympo(0.0, math.log(0.3), math.log(0.5)),
        stops=True,
    ),
    Case(build("scaled-asympo"), *asympo(1e-2, alpha=0.2), stops=True),
    Case(
        build("scaled-asympo", alpha=0.7, stable=True),
        *asympo(1e-2, math.log(0.02), math.log(0.97), alpha=0.7),
        stops=True,
    ),
    Case(build("asymre"), *asymre(-0.1)),
    Case(build("asymre", baseline_shift=0.3, **MEAN), *asymre(0.3)),
    Case(build("rft"), *RFT),
    Case(build("ppo"), *ppo()),
    Case(
        build("ppo", discount=0.9, gae_lambda=0.5, value_clip=0.05, value_coefficient=0.7, **SUM),
        *ppo(0.9, 0.5, 0.05, 0.7),
    ),
    Case(
        build("ppo", correction="truncate", value_coefficient=0.0),
        *corrected(ppo(value_coefficient=0.0), "truncate", "token"),
    ),
    Case(build("grpo"), *GRPO),
    Case(build("grpo", clip_high=0.28, dual_clip=INFINITY, **MEAN), *clipped(0.8, 1.28)),
    Case(build("dr-grpo", horizon=8), *GRPO),
    Case(build("gspo"), *GSPO),
    Case(build("gspo", clip_low=0.2, clip_high=0.3), *gspo(0.8, 1.3)),
    Case(build("cispo"), *per_token(partial(cispo_weight, 0.0, 5.0)), stops=True),
    Case(build("cispo", ratio_low=0.9, ratio_high=1.1), *per_token(partial(cispo_weight, 0.9, 1.1)), stops=True),
    Case(build("dppo-tv", horizon=8), *per_token(partial(tv_weight, 0.15, INFINITY)), stops=True),
    Case(build("dppo-tv", delta=0.03, ratio_high=1.2, **MEAN), *per_token(partial(tv_weight, 0.03, 1.2)), stops=True),
    Case(build("dppo-kl", horizon=8), *per_token(partial(kl_weight, 0.05, INFINITY)), stops=True),
    Case(build("dppo-kl", delta=0.002, ratio_high=1.2, **MEAN), *per_token(partial(kl_weight, 0.002, 1.2)), stops=True),
    Case(build("drpo", horizon=8), *penalized(lambda mu: mu / 0.5)),
    Case(build("drpo", delta=0.05, **MEAN), *penalized(lambda mu: mu / 0.05)),
    Case(build("simple-po", horizon=8), *penalized(lambda mu: 1 / 0.2)),
    Case(build("simple-po", epsilon=0.05, **MEAN), *penalized(lambda mu: 1 / 0.05)),
    Case(build("topr"), *per_response(topr_sequence), stops=True),
    Case(
        build("topr", level="token", ratio_low=0.8, ratio_high=1.1),
        *per_token(partial(topr_token, 0.8, 1.1)),
        stops=True,
    ),
    Case(build("m2po"), *m2po(0.04, 0.7, 1.5), stops=True),
    Case(build("m2po", budget=0.005, least_low=1.0, least_high=1.0), *m2po(0.005, 1.0, 1.0), stops=True),
    *(
        Case(
            build("grpo", correction=mode, correction_level=level, correction_low=0.9, correction_high=1.2),
            *corrected(GRPO, mode, level, 0.9, 1.2),
        )
        for mode in ("truncate", "mask")
        for level in ("token", "sequence")
    ),
    Case(
        build("cispo", correction="mask", correction_high=1.2),
        *corrected(per_token(partial(cispo_weight, 0.0, 5.0)), "mask", "token", 0.5, 1.2),
        stops=True,
    ),
    Case(
        build("dppo-tv", delta=0.03, correction="truncate", **MEAN),
        *corrected(per_token(partial(tv_weight, 0.03, INFINITY)), "truncate", "token"),
        stops=True,
    ),
    Case(build("gspo", correction="truncate", correction_level="sequence"), *corrected(GSPO, "truncate", "sequence")),
    *(
        Case(build("naive", kl=0.3, kl_estimator=estimator), *with_kl(NAIVE, 0.3, estimator))
        for estimator in ("k1", "k2", "k3")
    ),
    Case(build("grpo", kl=0.02, **MEAN), *with_kl(GRPO, 0.02, "k3")),
    Case(build("asympo", entropy_bonus=0.1), *with_entropy(asympo(1e-2), 0.1), stops=True),
    Case(build("rft", entropy_bonus=-0.1, kl=0.2, **SUM), *with_entropy(with_kl(RFT, 0.2, "k3"), -0.1)),
]
"""Every objective at its defaults, and everything that a field can switch."""
