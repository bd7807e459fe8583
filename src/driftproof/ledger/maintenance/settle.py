"""What each dispatch number is to be in a repaired ledger: pure, of what could be read.

Guarantees: every step up to the one at which the repaired ledger stands has exactly its groups; what is not trained is
ready where its content is whole, and to be written again where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice

from driftproof.ledger.store import Plan

UNTRAINED = ("leased", "ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A group's row as it could be read; some of it may be wrong."""

    state: str
    worker: str
    dispatched_step: int
    """Below 0: not readable."""
    trained_step: int | None
    whole: bool
    """Whether its content is what was committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The repaired ledger."""

    step: int
    pruned_step: int
    dispatched: int
    rows: Mapping[int, Row]
    trained: Mapping[int, int]
    """By dispatch, the step that trained it."""
    whole: frozenset[int]
    """Dispatch numbers whose content is kept."""
    again: tuple[int, ...]
    """Those to be written again."""
    lost: tuple[int, ...]
    """Those that are trained, whose content is lost."""
    pruned: tuple[int, ...]
    """Those that are trained, whose content had been pruned."""


def settle(
    *, plan: Plan, rows: Mapping[int, Row], claims: Mapping[int, int], step: int, base: int, pruned_step: int
) -> Settled:
    """Decide what becomes of each dispatch number.

    The weights of the newest whole checkpoint, of step `base`, cannot be undone: the steps up to it stay done, whatever
    is left of their groups. Later steps, up to `step`, stay where all of their groups are whole, else all are undone.
    `claims` says by dispatch which step trained it, for rows that cannot be read.
    """
    by_step = _by_step(rows, claims, plan)
    later = range(base + 1, step + 1)
    if base > step or not all(_complete(by_step.get(k, []), rows, plan, k <= pruned_step) for k in later):
        step_now = base
    else:
        step_now = step
    trained = _assign(by_step, rows, plan, step_now, step)
    # A pruned group's row must be there; no other is without content in a step that nobody can go back to.
    gone = [n for n in sorted(trained) if n not in rows or not rows[n].whole]
    pruned = tuple(n for n in gone if n in rows and trained[n] <= pruned_step)
    lost = tuple(n for n in gone if n not in rows or trained[n] > pruned_step)
    dispatched = 1 + max([-1, *rows, *claims, *trained])
    dispatched = min(dispatched, plan.steps * plan.groups_per_step)
    again = tuple(n for n in range(dispatched) if n not in trained and (n not in rows or not rows[n].whole))
    return Settled(
        step=step_now,
        pruned_step=max([min(pruned_step, step_now), *(trained[n] for n in lost)]),
        dispatched=dispatched,
        rows=rows,
        trained=trained,
        whole=frozenset(n for n, row in rows.items() if row.whole and n < dispatched),
        again=again,
        lost=lost,
        pruned=pruned,
    )


def _by_step(rows: Mapping[int, Row], claims: Mapping[int, int], plan: Plan) -> dict[int, list[int]]:
    """The groups of each step, those on which row and index agree first; never more than a step has."""
    told = {n: row.trained_step for n, row in rows.items() if row.state == "trained" and row.trained_step is not None}
    told |= {n: k for n, k in claims.items() if n not in told and (n not in rows or rows[n].state not in UNTRAINED)}
    by_step: dict[int, list[int]] = {}
    for n in sorted(told, key=lambda n: (claims.get(n) != told[n], n)):
        of_step = by_step.setdefault(told[n], [])
        if len(of_step) < plan.groups_per_step and n < plan.steps * plan.groups_per_step:
            of_step.append(n)
    return by_step


def _complete(of_step: list[int], rows: Mapping[int, Row], plan: Plan, pruned: bool) -> bool:
    return len(of_step) == plan.groups_per_step and all(pruned or (n in rows and rows[n].whole) for n in of_step)


def _assign(
    by_step: Mapping[int, list[int]], rows: Mapping[int, Row], plan: Plan, step: int, recorded: int
) -> dict[int, int]:
    """By dispatch the step that trained it, for all steps done; gaps are filled with those that nothing is known of.

    In steps that the ledger has no record of, groups were taken as ever: the oldest first.
    """
    trained = {n: k for k in range(1, step + 1) for n in by_step.get(k, [])}
    every = range(plan.steps * plan.groups_per_step)
    unknown = (n for n in every if n not in rows or rows[n].state not in UNTRAINED)
    free_unknown = (n for n in chain(unknown, every) if n not in trained)
    free = (n for n in every if n not in trained)
    for k in range(1, step + 1):
        lacking = plan.groups_per_step - len(by_step.get(k, []))
        trained |= dict.fromkeys(islice(free if k > recorded else free_unknown, lacking), k)
    return trained
