"""Ledgers of runs, made the way a run makes them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, Plan

from .ledgers import AFTER, BEFORE, GROUPS_PER_STEP, RECIPE, grow

MakeLedger = Callable[..., Ledger]


@pytest.fixture
def make_ledger(tmp_path: Path) -> Iterator[MakeLedger]:
    """`make_ledger(steps, planned=..., evaluated=True, recipe=True, negatives=True, entropy=True)`."""
    opened: list[Ledger] = []

    def make(
        steps: int,
        planned: int = 0,
        evaluated: bool = True,
        recipe: bool = True,
        max_staleness: int = 4,
        **metrics: bool,
    ) -> Ledger:
        directory = tmp_path / f"run-{len(opened)}"
        directory.mkdir()
        if recipe:
            (directory / "config.toml").write_text(RECIPE)
        plan = Plan(
            seed=0,
            prompts=50,
            groups_per_step=GROUPS_PER_STEP,
            max_staleness=max_staleness,
            steps=max(planned, steps, 1),
        )
        ledger = Ledger.create(directory / "ledger.sqlite", plan)
        opened.append(ledger)
        if evaluated:
            ledger.record_evaluation("heldout", 0, BEFORE)
        grow(ledger, steps, **metrics)
        if evaluated and steps and planned <= steps:
            ledger.record_evaluation("heldout", steps, AFTER)
            ledger.set_state(FINISHED)
        return ledger

    yield make
    for ledger in opened:
        ledger.close()
