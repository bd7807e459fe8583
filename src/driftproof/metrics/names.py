"""The metrics of a step: every name, once, with its unit, its meaning and where it is shown.

The tables of docs/runs.md are made of `ROWS`: `python -m tests.metrics.page`. Names are stable.
"""

from dataclasses import dataclass
from typing import Literal

Section = Literal["step", "time", "health", "drift", "objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Metrics that share a line of a table."""

    names: tuple[str, ...]
    unit: str
    """Empty for a share, a ratio, a count, a loss."""
    meaning: str
    note: str
    """Hint on what to look for in a curve; in the section "objective" the objectives that have the metrics."""
    shown: tuple[str, ...]
    """Places besides the trackers: `display`, `picture`, `summary`, `alarm`."""


ROWS: dict[Section, list[Row]] = {"step": [], "time": [], "health": [], "drift": [], "objective": []}


def _row(section: Section, names: str, *, meaning: str, note: str = "", unit: str = "", shown: str = "") -> list[str]:
    prefix = "" if section in ("step", "time") else "objective/" if section == "objective" else "health/"
    named = [prefix + name for name in names.split()]
    row = Row(names=tuple(named), unit=unit, meaning=meaning, note=note, shown=tuple(shown.split()))
    ROWS[section].append(row)
    return named


# fmt: off
[REWARD] = _row("step", "reward", shown="display picture alarm", meaning="mean reward of the step's responses")
AGE_MEAN, AGE_MAX = _row("step", "age_mean age_max", unit="steps", shown="display picture summary",
    meaning="age of the step's groups: the learner's step at training minus its step at dispatch (others call it "
            "policy lag)")
WEIGHTS_AGE_MEAN, WEIGHTS_AGE_MAX = _row("step", "weights_age_mean weights_age_max", unit="steps",
    meaning="the same from the step of the weights that were newest at dispatch")
[LOSS] = _row("step", "loss", meaning="the objective's loss (for `asympo` constantly zero: plot `health/...`)")
[GRAD_NORM] = _row("step", "grad_norm", shown="picture", meaning="the gradient's norm before clipping")
[LR] = _row("step", "lr", meaning="the learning rate")
[SKIPPED] = _row("step", "skipped",
    meaning="share of updates whose loss or gradient was not finite; they leave weights and optimizer alone, and "
            "their groups are in `skipped/`")
GROUPS, RESPONSES, RESPONSE_TOKENS = _row("step", "groups responses response_tokens", shown="display picture summary",
    meaning="how much the step trained")
[GROUPS_OF_EQUAL_REWARD] = _row("step", "groups_of_equal_reward", shown="summary",
    meaning="groups whose advantages are all zero")
[RESPONSES_WITHOUT_REWARD] = _row("step", "responses_without_reward",
    meaning="responses whose verification failed; they get advantage 0")
[RESPONSES_BREAKING_VERIFIER] = _row("step", "responses_breaking_verifier",
    meaning="responses that broke a verifier which otherwise works; their reward is what `verify.on_timeout` says")
[REWARD_OF_FUNCTION] = _row("step", "reward/NAME",
    meaning="where several functions reward: the mean of each, before weights, over the responses that have one")
[RESPONSE_LENGTH] = _row("step", "response_length", unit="tokens", meaning="mean length of the responses")
[TRUNCATED_SHARE] = _row("step", "truncated_share", meaning="share of responses that used up `sampling.max_tokens`")

WAIT_SECONDS, TRAIN_SECONDS, PUBLISH_SECONDS, RECORD_SECONDS, CHECKPOINT_SECONDS, STEP_SECONDS = _row("time",
    "time/wait_seconds time/train_seconds time/publish_seconds time/record_seconds time/checkpoint_seconds "
    "time/step_seconds", unit="s", shown="display picture summary",
    meaning="the learner's time; metrics, trackers and the checkpoint of a step count in the next one's")
BUSY_SECONDS, ROLLOUT_TOKENS = _row("time", "rollout/busy_seconds rollout/tokens", unit="s, tokens",
    shown="display picture summary", meaning="the rollout side's work since the step before, summed over workers")

[NLL] = _row("health", "nll", unit="nats", meaning="mean of S over the responses")
POSITIVE_NLL, NEGATIVE_NLL = _row("health", "positive_nll negative_nll", unit="nats",
    shown="display picture summary alarm", meaning="S of the responses with A > 0, with A < 0, weighted by abs A",
    note="two lines that part; positives that get improbable announce a collapse")
[SCALE_IMBALANCE] = _row("health", "scale_imbalance", shown="display picture",
    meaning="negative_nll / positive_nll",
    note="what `asympo` evens out; it rises in healthy runs too, as positives get certain")
POSITIVE_MASS, NEGATIVE_MASS = _row("health", "positive_mass negative_mass", unit="nats",
    meaning="naive loss mass: sum of abs A times S over the sign's responses, over all responses")
[BALANCE] = _row("health", "balance", unit="nats",
    meaning="positive_mass - negative_mass, which is the loss of `naive`", note="it falls without end")
POSITIVE_SHARE, NEGATIVE_SHARE = _row("health", "positive_share negative_share",
    meaning="share of responses with A > 0, with A < 0", note="both near 0: most groups teach nothing")
LARGEST_INVERSE_NLL, SMALLEST_INVERSE_NLL = _row("health", "largest_inverse_nll smallest_inverse_nll", unit="1/nats",
    meaning="extremes of 1/S over responses with tokens and A not 0: the factors by which `asympo`, before its "
            "floor, multiplies the gradient of `naive`",
    note="the largest grows as the policy gets certain; then a lower learning rate, or a larger `floor`")
[ENTROPY] = _row("health", "entropy", unit="nats", shown="display picture",
    meaning="mean token entropy of the current policy", note="it falls to 0: the policy has stopped exploring")
POSITIVE_GRADIENT_MASS, NEGATIVE_GRADIENT_MASS = _row("health", "positive_gradient_mass negative_gradient_mass",
    meaning="what pulls up and what pushes down: the L1 norm of the loss's gradient by the logits of the sign's "
            "tokens, that is the sum of abs(dL/dlog p) 2 (1 - p) / temperature",
    note="a jump; for `asympo` they add up to at most 2 mean abs A / temperature")
[GRADIENT_IMBALANCE] = _row("health", "gradient_imbalance",
    meaning="negative_gradient_mass / positive_gradient_mass", note="far above 1: the step mostly unlearns")

RATIO_MEAN, RATIO_MIN, RATIO_MAX = _row("drift", "ratio_mean ratio_min ratio_max",
    meaning="rho over the step's tokens, with log rho clamped to ±20",
    note="a mean far from 1; extremes at e^±20 are a misalignment, not drift")
RATIO_P05, RATIO_P50, RATIO_P95 = _row("drift", "ratio_p05 ratio_p50 ratio_p95",
    meaning="percentiles of rho, the token of the nearest rank", note="how much of the step a clip would reach")
[BEHAVIOR_KL] = _row("drift", "behavior_kl", unit="nats",
    meaning="mean of rho - 1 - log rho: estimates KL(behavior, current) per token",
    note="it grows with age and learning rate")
[EFFECTIVE_SAMPLE_SIZE] = _row("drift", "effective_sample_size",
    meaning="(sum rho)² / (N sum rho²) over N tokens: 1 without drift, 1/N where one token has all the weight")
[SEQUENCE_EFFECTIVE_SAMPLE_SIZE] = _row("drift", "sequence_effective_sample_size",
    meaning="the same over responses, with the product of rho over each; the products are not clamped",
    note="near 1/R: a sequence-level ratio sees one response")

_row("objective", "clipped_high_share clipped_low_share",
    meaning="tokens at the upper bound, at the lower bound or masked there: above and below the ratio's clip "
            "(`grpo`, `dr-grpo`, `ppo`, `gspo`, `m2po`), moved too far up or down (`dppo-tv`, `dppo-kl`), a weight "
            "cut (`cispo`, `topr`), a log-prob cut (`asympo` with `stable`)",
    note="as named")
_row("objective", "floored_share", meaning="tokens of responses whose mean NLL is under `floor`", note="`asympo`")
_row("objective", "turned_share",
    meaning="tokens beyond the threshold, which are pulled back", note="`drpo`, `simple-po`")
_row("objective", "corrected_share",
    meaning="tokens whose weight between proximal and behavior policy was truncated or masked",
    note="any with `correction`")
_row("objective", "second_moment clip_high",
    meaning="mean of (log rho)² over harmful tokens before clipping; the upper clip that follows from the budget",
    note="`m2po`")
_row("objective", "alpha", meaning="the factor for groups that teach nothing", note="`gpg`")
_row("objective", "value_loss value_mean",
    meaning="the critic's loss, before `value_coefficient`, and its mean value, over tokens", note="`ppo`")
_row("objective", "kl", meaning="mean over tokens of the KL estimate, before the weight `kl`", note="any with `kl`")
