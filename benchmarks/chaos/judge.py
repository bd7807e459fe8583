"""What became of every group: trained once, trained twice, lost; computed from the notes of the witness.

The history that survives is that of the weights that were published last: the training that left them, the training
that left those which that one found, and so on back to the first step. The ledger has no say in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.chaos import witness
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from driftproof.weights.files import WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A group as the ledger holds it."""

    prompt: int
    content: str
    trained_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known when a storm is over."""

    plan: Plan
    commits: Sequence[Mapping[str, Any]]
    """Noted by the processes that committed."""
    acknowledged: Sequence[Mapping[str, Any]]
    """Noted by workers over the inbox."""
    trainings: Sequence[Mapping[str, Any]]
    held: Mapping[int, Held]
    """What the ledger holds, by dispatch."""
    steps: Sequence[int]
    """Of which the ledger has metrics."""
    published: str
    """Digest of the newest snapshot's weights."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of the groups; `lost` and `trained_twice` hold dispatch numbers."""

    groups_committed: int
    trained_once: int
    trained_twice: list[int]
    lost: list[int]
    problems: list[str] = field(default_factory=list)
    """Whatever else must not be."""


def gather(run: Path, faults: Path) -> Evidence:
    """The evidence of a run that has finished."""
    notes = witness.read(faults / witness.NOTES)
    with Ledger(run / "ledger.sqlite") as ledger:
        held = {
            record.dispatch: Held(
                prompt=record.group.prompt_index,
                content=witness.content(record.group),
                trained_step=record.trained_step,
            )
            for record in ledger.records()
        }
        return Evidence(
            plan=ledger.plan,
            commits=[note for note in notes if note["what"] == "commit"],
            acknowledged=witness.read(faults / witness.ACKNOWLEDGED),
            trainings=[note for note in notes if note["what"] == "train"],
            held=held,
            steps=[metrics["step"] for metrics in ledger.steps()],
            published=witness.weights(load_file(run / "snapshots" / "latest" / WEIGHTS).items()),
        )


def surviving(
    trainings: Sequence[Mapping[str, Any]], steps: int, published: str
) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """The training of each step that the published weights come from, the last step first, as far as it is known."""
    wanted = published
    left = list(trainings)
    for step in range(steps, 0, -1):
        while left and (left[-1]["step"], left[-1]["after"]) != (step, wanted):
            left.pop()
        yield step, left[-1] if left else None
        if not left:
            return
        wanted = left[-1]["before"]


def judge(evidence: Evidence) -> Judgement:
    plan, held = evidence.plan, evidence.held
    way_back = list(surviving(evidence.trainings, plan.steps, evidence.published))
    history = [training for _, training in way_back if training is not None]
    unknown = [step for step, training in way_back if training is None]
    trained = [(dispatch, content) for training in history for dispatch, content in training["groups"]]
    times = Counter(dispatch for dispatch, _ in trained)
    committed = held.keys() | {note["dispatch"] for note in (*evidence.commits, *evidence.acknowledged)}
    planned = range(plan.steps * plan.groups_per_step)
    lost = {dispatch for dispatch in committed.union(planned) if times[dispatch] == 0 or dispatch not in held}
    # Somebody was told that this content is kept; another one under its number does not make up for it.
    contents = {dispatch: {group.content} for dispatch, group in held.items()}
    for dispatch, content in trained:
        contents.setdefault(dispatch, set()).add(content)
    for note in evidence.commits:
        contents.setdefault(note["dispatch"], set()).add(note["content"])
    for note in evidence.acknowledged:
        seen = contents.setdefault(note["dispatch"], set())
        if {content.partition("-")[0] for content in seen} != {note["tokens"]}:
            lost.add(note["dispatch"])
    lost |= {dispatch for dispatch, seen in contents.items() if len(seen) > 1}
    twice = {dispatch for dispatch in times if times[dispatch] > 1}
    return Judgement(
        groups_committed=len(committed),
        trained_once=sum(times[dispatch] == 1 for dispatch in committed - lost),
        trained_twice=sorted(twice),
        lost=sorted(lost),
        problems=[
            *(f"nobody has noted the training of step {step} that the weights come from" for step in unknown),
            *_problems(evidence, history),
        ],
    )


def _problems(evidence: Evidence, history: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    plan, held = evidence.plan, evidence.held
    steps = list(range(1, plan.steps + 1))
    if list(evidence.steps) != steps:
        yield f"the ledger's steps are not 1 to {plan.steps}"
    for training in history:
        ours = {dispatch for dispatch, group in held.items() if group.trained_step == training["step"]}
        if ours != {dispatch for dispatch, _ in training["groups"]} or len(ours) != plan.groups_per_step:
            yield f"step {training['step']}: the ledger names other groups than the learner trained"
    dispatched = Counter((dispatch // plan.prompts, group.prompt) for dispatch, group in held.items())
    if again := [prompt for prompt, count in dispatched.items() if count > 1]:
        yield f"prompts dispatched more than once in an epoch (epoch, prompt): {again[:5]}"
    commits = Counter(note["dispatch"] for note in evidence.commits)
    if again := [dispatch for dispatch, count in commits.items() if count > 1]:
        yield f"groups accepted more than once: {again[:5]}"
