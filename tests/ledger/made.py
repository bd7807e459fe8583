"""Runs without a model: ledgers filled as a run fills them, with checkpoints of a few bytes."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters, Plan
from driftproof.run import remove_at_once, rename_durably
from driftproof.types import FinishReason, Group

PER_STEP, STALENESS, CHECKPOINT_EVERY = 4, 2, 5


def group_of(dispatch: int, prompt_index: int) -> Group:
    """Eight responses of eight tokens that no other group has."""
    tokens = np.random.default_rng(dispatch).integers(0, 1000, 64).astype(np.int32)
    return Group(
        prompt_index=prompt_index,
        prompt_tokens=np.array([dispatch], np.int32),
        response_tokens=tokens,
        response_lengths=np.full(8, 8, np.int32),
        rewards=np.arange(8, dtype=np.float64) % 2,
        finish_reasons=(FinishReason.STOP,) * 8,
    )


def make_run(run: Path, steps: int = 23, total: int = 40) -> Path:
    """A run that was killed: `steps` done, a step under way, groups ready and leased, checkpoints every fifth step."""
    run.mkdir(parents=True)
    plan = Plan(seed=3, prompts=17, groups_per_step=PER_STEP, max_staleness=STALENESS, steps=total)
    with Ledger.create(run / "ledger.sqlite", plan) as ledger:
        go_on(run, ledger, steps)
        ledger.record_evaluation("heldout", 0, {"sampled": 0.5})
        ledger.record_event("late commit", "one")
        ledger.report_worker("a", Counters(tokens=3))
        if steps < total:
            assert ledger.take(PER_STEP) is not None
            write(ledger, 2)
            assert len(ledger.lease("a", 2, 1000.0)) == 2
    return run


def write(ledger: Ledger, count: int) -> None:
    leases = ledger.lease("a", count, 1000.0)
    ledger.commit("a", {lease.dispatch: group_of(lease.dispatch, lease.prompt_index) for lease in leases})


def go_on(run: Path, ledger: Ledger, until: int) -> None:
    """Train to a step, as the learner does; the newest two checkpoints are kept."""
    while ledger.step < until:
        write(ledger, 3 * PER_STEP)
        batch = ledger.take(ledger.plan.groups_per_step)
        assert batch is not None
        ledger.finish_step(batch.step, {"reward": batch.step / 2, "groups": PER_STEP})
        if batch.step % CHECKPOINT_EVERY == 0:
            ledger.make_durable()
            make_checkpoint(run / "checkpoints", batch.step)


def resume(run: Path) -> Ledger:
    """As `driftproof train --resume` does: from the newest checkpoint, to the end."""
    ledger = Ledger(run / "ledger.sqlite")
    newest = max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)
    ledger.rewind(newest)
    return ledger


def make_checkpoint(directory: Path, step: int) -> Path:
    path = directory / f"step-{step:08d}"
    partial = directory / f".partial-{path.name}"
    partial.mkdir(parents=True)
    for name in ("model", "optimizer"):
        (partial / f"{name}.safetensors").write_bytes(safetensors(16))
    (partial / "state.json").write_text(json.dumps({"format_version": 1, "step": step}))
    if path.exists():
        remove_at_once(path)
    rename_durably(partial, path)
    for old in sorted(directory.glob("step-*"))[:-2]:
        remove_at_once(old)
    return path


def safetensors(values: int) -> bytes:
    """A file of one tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * values)


def is_original(group: Group, dispatch: int) -> bool:
    """Whether a group is the one that `group_of` makes, bit for bit."""
    expected = group_of(dispatch, group.prompt_index)
    return all(_same(getattr(group, name), getattr(expected, name)) for name in Group.__dataclass_fields__)


def trained_all_once(ledger: Ledger) -> None:
    """Every group of the run is trained, in exactly one step, in whole steps."""
    ages = ledger.ages_by_step()
    assert [len(step) for step in ages] == [ledger.plan.groups_per_step] * ledger.plan.steps
    assert ledger.status().trained == ledger.status().dispatched == ledger.plan.steps * ledger.plan.groups_per_step


def files_of(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    return bool(ours == theirs)
