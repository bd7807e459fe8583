"""The papers' claims, and what grids of the lab say of them.

Guarantees: pure functions of results. A claim is a list of checks, each with its figures; the verdict follows from them
alone: `reproduced` if all hold, `partly` if some do, `not reproduced` if none does, `not run` if there is none.

Checks are strict: a difference counts where its 95% bootstrap interval, over runs paired by their seeds, excludes 0.
Two objectives are on par where that interval is above -`MARGIN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from driftproof.evaluation.score import bootstrap, wilson
from driftproof.lab.experiment import Result
from driftproof.lab.grid import View
from driftproof.lab.settings import LabConfig
from driftproof.lab.summary import accuracies, collapsed_at, summarize
from driftproof.metrics import names

Verdict = Literal["reproduced", "partly", "not reproduced", "not run"]

MARGIN = 0.03
"""Difference of accuracy that on par leaves room for."""
BEFORE = 20
"""Steps that are "before" a collapse."""
ALPHAS = ("spo 0.0", "spo 0.1", "spo 0.2", "spo 0.5", "spo 1.0")
PAPERS_ALPHA = "spo 0.2"
DELTAS = ("drpo 0.04", "drpo 0.08", "drpo 0.15", "drpo 0.2", "drpo 0.5", "drpo 2.5", "drpo 12.5")
FALLING, STEADY = ("naive", "gpg"), ("spo", "asympo")
STALE, RATIOS = ("collapse", "sums", "periodic"), ("collapse", "threshold")
PARTS = (
    ("asympo", "clipping alone", "dividing does more than clipping"),
    ("asympo", "asympo stable", "the plain form does as well as the stable one"),
    ("asympo", "per batch", "per response is better than per batch"),
    ("asympo", "negatives alone", "dividing both signs is better than the negatives alone"),
    ("asympo", "by 1 - p", "the NLL is a better divisor than the mean of 1 - p"),
    ("asympo", "naive at lr / mean NLL", "it is not the step size"),
)
"""The comparisons of claim 6, and what each would show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A grid and its results."""

    config: LabConfig
    results: Sequence[Result]

    @property
    def name(self) -> str:
        return self.config.run.name

    def views(self) -> list[View]:
        """The views that have results, without the sweep."""
        return list(dict.fromkeys(r.cell.view for r in self.results if r.cell.view != "tuning"))

    def ages(self, view: View) -> list[int]:
        return sorted({result.cell.staleness for result in self.results if result.cell.view == view})

    def runs(self, view: View, label: str, age: int) -> list[Result]:
        """The runs of an objective in the order of their seeds; [] where there are none."""
        chosen = [r for r in self.results if (r.cell.view, r.cell.label, r.cell.staleness) == (view, label, age)]
        return sorted(chosen, key=lambda result: result.cell.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that a claim says of a grid."""

    text: str
    """The statement with its figures."""
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement of a paper, and how it is checked."""

    number: int
    text: str
    source: str
    checks: Callable[[Mapping[str, Study]], Iterator[Check]]
    """Makes the checks of the studies there are, by their names."""
    evidence: Callable[[Mapping[str, Study]], str]
    """The figures in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim and what came of it."""

    claim: Claim
    checks: tuple[Check, ...]
    evidence: str
    """Figures in a sentence; empty where nothing was run."""

    @property
    def verdict(self) -> Verdict:
        if not self.checks:
            return "not run"
        holding = sum(check.holds for check in self.checks)
        return "reproduced" if holding == len(self.checks) else "partly" if holding else "not reproduced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Final accuracy of one objective minus that of another, over runs of the same seeds."""

    mean: float
    low: float
    high: float
    """95% bootstrap interval."""
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def judge(studies: Mapping[str, Study]) -> list[Finding]:
    """All claims against the grids there are."""
    findings = []
    for claim in CLAIMS:
        checks = tuple(claim.checks(studies))
        findings.append(Finding(claim=claim, checks=checks, evidence=claim.evidence(studies) if checks else ""))
    return findings


def difference(study: Study, view: View, one: str, other: str, age: int) -> Difference | None:
    """The difference of two objectives at one age; None where they have no seed in common."""
    found = [{r.cell.seed: accuracies(r)[-1] for r in study.runs(view, label, age)} for label in (one, other)]
    values = [found[0][seed] - found[1][seed] for seed in found[0] if seed in found[1]]
    if not values:
        return None
    low, high = bootstrap(values)
    return Difference(mean=fmean(values), low=low, high=high, seeds=len(values))


def _stale(studies: Mapping[str, Study], *names: str) -> Iterator[tuple[Study, View, int, str]]:
    """Every setting of these studies with stale data, and what it is called."""
    for name in names:
        if (study := studies.get(name)) is not None:
            for view in study.views():
                for age in study.ages(view):
                    if age > 0:
                        yield study, view, age, f"{name}, {view}, age {age}"


def _collapses(runs: Sequence[Result]) -> str:
    fallen = sum(collapsed_at(run) is not None for run in runs)
    low, high = wilson(fallen, len(runs))
    return f"{fallen}/{len(runs)} [{low:.2f}, {high:.2f}]"


def _finals(runs: Sequence[Result]) -> str:
    [summary] = summarize(runs)
    low, high = summary.final_interval
    return f"{summary.final:.2f} [{low:.2f}, {high:.2f}]"


def _ends(*labels: str, grids: tuple[str, ...]) -> Callable[[Mapping[str, Study]], str]:
    """Shares of the stale runs of each objective that collapsed, and that ended below the policy they began with."""

    def evidence(studies: Mapping[str, Study]) -> str:
        parts = []
        for label in labels:
            runs = [run for study, view, age, _ in _stale(studies, *grids) for run in study.runs(view, label, age)]
            below = sum(accuracies(run)[-1] < accuracies(run)[0] for run in runs)
            parts.append(f"{label}: collapsed {_collapses(runs)}, below its base {below}/{len(runs)}")
        return "; ".join(parts)

    return evidence


def _gaps(*pairs: tuple[str, str], grids: tuple[str, ...]) -> Callable[[Mapping[str, Study]], str]:
    """The least and the largest difference of final accuracy between two objectives over all settings."""

    def evidence(studies: Mapping[str, Study]) -> str:
        parts = []
        for one, other in pairs:
            found = [difference(study, view, one, other, age) for study, view, age, _ in _stale(studies, *grids)]
            means = [gap.mean for gap in found if gap is not None]
            if len(means) == 1:
                parts.append(f"{one} minus {other}: {means[0]:+.2f}")
            elif means:
                parts.append(f"{one} minus {other}: {min(means):+.2f} to {max(means):+.2f} in {len(means)} settings")
        return "; ".join(parts)

    return evidence


def _each_ends_at(*labels: str, grid: str) -> Callable[[Mapping[str, Study]], str]:
    """Final accuracy of each objective of a grid of one setting."""

    def evidence(studies: Mapping[str, Study]) -> str:
        places = [(study, view, age) for study, view, age, _ in _stale(studies, grid)]
        found = [(label, study.runs(view, label, age)) for study, view, age in places for label in labels]
        return "; ".join(f"{label}: {_finals(runs)}" for label, runs in found if runs)

    return evidence


def stale_collapse(studies: Mapping[str, Study]) -> Iterator[Check]:
    """The checks of claim 1."""
    for study, view, age, where in _stale(studies, *STALE):
        for label in FALLING:
            if runs := study.runs(view, label, age):
                [summary] = summarize(runs)
                yield Check(
                    text=f"{where}: {label} collapses, {_collapses(runs)}", holds=summary.collapsed > len(runs) / 2
                )
                text = f"{where}: {label} ends below its base of {summary.base:.2f}: {_finals(runs)}"
                yield Check(text=text, holds=summary.final_interval[1] < summary.base)
        for label in STEADY:
            if runs := study.runs(view, label, age):
                [summary] = summarize(runs)
                text = f"{where}: {label} does not, {_collapses(runs)}, and ends above its base of {summary.base:.2f}"
                yield Check(
                    text=f"{text}: {_finals(runs)}",
                    holds=not summary.collapsed and summary.final_interval[0] > summary.base,
                )
        for label in FALLING:
            for steady in STEADY:
                if found := difference(study, view, steady, label, age):
                    yield Check(text=f"{where}: {steady} ends above {label}, by {found}", holds=found.low > 0)


def on_par(studies: Mapping[str, Study]) -> Iterator[Check]:
    """The checks of claim 2."""
    for study, view, age, where in _stale(studies, *STALE):
        for label in STEADY:
            if found := difference(study, view, label, "grpo", age):
                yield Check(text=f"{where}: {label} minus grpo {found}", holds=found.low > -MARGIN)


def growth(studies: Mapping[str, Study]) -> str:
    """The growth of both scales before the collapses of claim 3."""
    parts = []
    for metric, what in ((names.NEGATIVE_NLL, "negatives"), (names.POSITIVE_NLL, "positives")):
        pairs = [pair for run, step in _fallen(studies) if (pair := _start_and_before(run, metric, step)) is not None]
        if pairs:
            times = median(before / start for start, before in pairs)
            parts.append(f"the {what}' NLL grew {times:.1f} times before a collapse (median of {len(pairs)})")
    return "; ".join(parts)


def scales_drift(studies: Mapping[str, Study]) -> Iterator[Check]:
    """The checks of claim 3."""
    chosen = [studies[name] for name in ("collapse", "sums") if name in studies]
    results = [r for study in chosen for r in study.results if r.cell.view != "tuning" and r.cell.staleness > 0]
    fallen = _fallen(studies)
    scales = {names.NEGATIVE_NLL: "the negatives' NLL", names.SCALE_IMBALANCE: "its ratio to the positives'"}
    for metric, what in scales.items():
        pairs = [pair for run, step in fallen if (pair := _start_and_before(run, metric, step)) is not None]
        if pairs:
            grown = sum(before > start for start, before in pairs)
            low, high = wilson(grown, len(pairs))
            start, before = (median(values) for values in zip(*pairs, strict=True))
            text = (
                f"{what} is larger before a collapse of naive or gpg than in the run's first {BEFORE} steps in "
                f"{grown}/{len(pairs)} [{low:.2f}, {high:.2f}] runs: median {start:.2f}, then {before:.2f}"
            )
            yield Check(text=text, holds=low > 0.5)
    asympo = [run for run in results if run.cell.label == "asympo"]
    naive = [run for run in results if run.cell.label == "naive"]
    if asympo and naive:
        largest, other = (max(abs(row[names.LOSS]) for run in runs for row in run.rows[1:]) for runs in (asympo, naive))
        text = (
            f"asympo's loss stays at 0 in {len(asympo)} stale runs: at most {largest:.4f}; naive's reaches {other:.2f}"
        )
        yield Check(text=text, holds=largest < other / 100)
        kept = [min(row[names.GRAD_NORM] for row in run.rows[1:]) / run.rows[1][names.GRAD_NORM] for run in asympo]
        text = f"its gradient does not vanish: the smallest norm is {min(kept):.2f} of the first or more"
        yield Check(text=text, holds=min(kept) > 0.1)


def _fallen(studies: Mapping[str, Study]) -> list[tuple[Result, int]]:
    """The stale runs of naive and GPG that collapsed, and when."""
    places = list(_stale(studies, "collapse", "sums"))
    runs = [run for study, view, age, _ in places for label in FALLING for run in study.runs(view, label, age)]
    return [(run, step) for run in runs if (step := collapsed_at(run)) is not None]


def _start_and_before(run: Result, metric: str, collapse: int) -> tuple[float, float] | None:
    """Means of a signal over the first steps, and over later ones before the collapse; None where there are none."""
    series = run.signals.get(metric, ())
    start = [value for value in series[:BEFORE] if value is not None]
    before = [value for value in series[max(collapse - BEFORE, BEFORE) : collapse] if value is not None]
    return (fmean(start), fmean(before)) if start and before else None


def alpha_matters(studies: Mapping[str, Study]) -> Iterator[Check]:
    """The checks of claim 4."""
    for study, view, age, where in _stale(studies, "alpha"):
        for label in ALPHAS:
            if label != PAPERS_ALPHA and (found := difference(study, view, PAPERS_ALPHA, label, age)):
                runs = study.runs(view, label, age)
                text = f"{where}: {PAPERS_ALPHA} ends above {label}, which ends at {_finals(runs)}, by {found}"
                yield Check(text=text, holds=found.low > 0)


def steadier(studies: Mapping[str, Study]) -> Iterator[Check]:
    """The checks of claim 5."""
    for study, view, age, where in _stale(studies, *RATIOS):
        if found := difference(study, view, "dppo-tv", "grpo", age):
            yield Check(text=f"{where}: dppo-tv minus grpo {found}", holds=found.low > 0)
        for label in ("drpo", *DELTAS):
            if found := difference(study, view, label, "dppo-tv", age):
                yield Check(text=f"{where}: {label} minus dppo-tv {found}", holds=found.low > 0)


def what_does_the_work(studies: Mapping[str, Study]) -> Iterator[Check]:
    """The checks of claim 6."""
    for study, view, age, where in _stale(studies, "ablation"):
        for one, other, text in PARTS:
            if found := difference(study, view, one, other, age):
                holds = found.low > (-MARGIN if "as well as" in text else 0)
                yield Check(text=f"{where}: {text}: {one} minus {other} {found}", holds=holds)


CLAIMS = (
    Claim(
        number=1,
        text="Naive and GPG collapse on stale data; ASymPO and SPO do not",
        source="arXiv 2606.03070",
        checks=stale_collapse,
        evidence=_ends(*FALLING, *STEADY, grids=STALE),
    ),
    Claim(
        number=2,
        text="ASymPO's and SPO's final accuracy is on par with behavior-corrected GRPO",
        source="arXiv 2606.03070",
        checks=on_par,
        evidence=_gaps(("spo", "grpo"), ("asympo", "grpo"), grids=STALE),
    ),
    Claim(
        number=3,
        text="Negatives drift to a larger NLL than positives before a naive run collapses; "
        "ASymPO's loss stays zero-sum while its gradient does not vanish",
        source="arXiv 2606.03070, Eq. 11-13 and Theorem 2",
        checks=scales_drift,
        evidence=growth,
    ),
    Claim(
        number=4,
        text="SPO's alpha matters",
        source="arXiv 2606.03070",
        checks=alpha_matters,
        evidence=_each_ends_at(*ALPHAS, grid="alpha"),
    ),
    Claim(
        number=5,
        text="DPPO is steadier than GRPO, DRPO than DPPO",
        source="arXiv 2602.04879, arXiv 2606.09821",
        checks=steadier,
        evidence=_gaps(("dppo-tv", "grpo"), ("drpo", "dppo-tv"), *((d, "dppo-tv") for d in DELTAS), grids=RATIOS),
    ),
    Claim(
        number=6,
        text="What makes ASymPO work is the division by a response's own NLL",
        source="arXiv 2606.03070",
        checks=what_does_the_work,
        evidence=_each_ends_at("asympo", *(other for _, other, _ in PARTS), grid="ablation"),
    ),
)
