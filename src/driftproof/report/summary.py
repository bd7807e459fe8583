"""The outcome of a run in figures.

Guarantees: everything comes from the run directory, so a summary can be made again at any time; a figure that does not
exist (no evaluation, no step) is None, and NaN never enters the JSON.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from driftproof.ledger.reader import LedgerReader
from driftproof.metrics import names
from driftproof.report.overlap import finite, overlap, ratio
from driftproof.run import RunDirectory, written_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of `summary.json`, under the same names."""

    objective: str | None
    model: str
    """Directory of the model that the run made."""
    accuracy_before: float | None
    """Share of sampled responses (temperature 1) to held-out prompts that are right, before the first step; errors are
    standard errors over prompts."""
    accuracy_after: float | None
    """The same share after the last step done."""
    accuracy_before_error: float | None
    accuracy_after_error: float | None
    greedy_before: float | None
    greedy_after: float | None
    evaluation_prompts: int | None
    evaluation_samples: int | None
    """Sampled responses per prompt; one greedy response is added."""
    nll_heldout_before: dict[str, float] | None
    """Recorded traces: `positive_nll` and `negative_nll` of the held-out part, nats per token; else None."""
    nll_heldout_after: dict[str, float] | None
    steps: int
    wall_seconds: float
    """Wall time of all steps, evaluations not counted."""
    steps_per_second: float | None
    overlap_efficiency: float | None
    """Busy time of the busier side over `wall_seconds`."""
    groups_committed: int
    groups_trained: int
    tokens_trained: int
    age_mean: float | None
    """Mean over trained groups, in steps."""
    age_max: int | None
    groups_of_equal_reward: int
    """Trained groups whose rewards are all equal: their advantages are 0."""
    events: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON values; the held-out NLLs only where there are any."""
        values = asdict(self)
        if self.nll_heldout_before is None and self.nll_heldout_after is None:
            del values["nll_heldout_before"], values["nll_heldout_after"]
        return values


def summarize(ledger: LedgerReader, model: Path) -> Summary:
    """The summary of a run; `model` is the directory of the model that it made."""
    steps, status, evaluations = ledger.steps(), ledger.status(), ledger.evaluations()
    heldout, recorded = evaluations.get("heldout", {}), evaluations.get("heldout_nll", {})
    # A run without steps has no "after".
    before, after = heldout.get(0, {}), heldout.get(status.step, {}) if status.step else {}
    both_sides = overlap(steps, len(ledger.workers()))
    groups = sum(metrics.get(names.GROUPS, 0) for metrics in steps)
    ages = sum(metrics.get(names.AGE_MEAN, 0.0) * metrics.get(names.GROUPS, 0) for metrics in steps)
    return Summary(
        objective=read_recipe(ledger).get("objective", {}).get("name"),
        model=str(model.resolve()),
        accuracy_before=finite(before.get("sampled")),
        accuracy_after=finite(after.get("sampled")),
        accuracy_before_error=finite(before.get("sampled_error")),
        accuracy_after_error=finite(after.get("sampled_error")),
        greedy_before=finite(before.get("greedy")),
        greedy_after=finite(after.get("greedy")),
        evaluation_prompts=(after or before).get("prompts"),
        evaluation_samples=(after or before).get("samples"),
        nll_heldout_before=_nll_by_sign(recorded.get(0)),
        nll_heldout_after=_nll_by_sign(recorded.get(status.step)) if status.step else None,
        steps=status.step,
        wall_seconds=both_sides.wall_seconds,
        steps_per_second=ratio(len(steps), both_sides.wall_seconds),
        overlap_efficiency=both_sides.efficiency,
        groups_committed=status.ready + status.trained,
        groups_trained=status.trained,
        tokens_trained=int(both_sides.learner_tokens),
        age_mean=ratio(ages, groups),
        age_max=max((metrics[names.AGE_MAX] for metrics in steps if names.AGE_MAX in metrics), default=None),
        groups_of_equal_reward=sum(int(metrics.get(names.GROUPS_OF_EQUAL_REWARD, 0)) for metrics in steps),
        events={kind: count for kind, (count, _) in ledger.events().items()},
    )


def write_summary(path: Path, summary: Summary) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(summary.to_json(), indent=2, allow_nan=False) + "\n")


def read_recipe(ledger: LedgerReader) -> dict[str, Any]:
    """The `config.toml` beside a ledger; {} for a ledger that stands alone."""
    path = RunDirectory(path=ledger.path.parent).config
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _nll_by_sign(result: Mapping[str, Any] | None) -> dict[str, float] | None:
    chosen = {"positive_nll": names.POSITIVE_NLL, "negative_nll": names.NEGATIVE_NLL}
    if result is None:
        return None
    return {short: value for short, name in chosen.items() if (value := finite(result.get(name))) is not None}
