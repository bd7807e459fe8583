"""What each event costs a ledger that has grown: 1,000, 100,000 and 1,000,000 groups of 8 responses of 8 tokens.

    python -m benchmarks.growth

Target: no event of a step costs more in the largest ledger than twice what it costs in the smallest (medians).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.harness import write_results
from driftproof.ledger.codec import content_checksum, figures_of, row_checksum, to_row
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters, Plan
from driftproof.ledger.store import Store, open_store
from driftproof.types import FinishReason, Group

GROUPS = (1_000, 100_000, 1_000_000)
PER_STEP, STALENESS, RESPONSES, TOKENS, PROMPTS = 16, 4, 8, 8, 10_000
STEPS, INTERVAL, OPENINGS = 200, 50, 50
"""Steps that are measured, from one checkpoint to the next, and openings."""
METRICS = {f"health/metric_{i}": 0.123456789 * i for i in range(40)}
Result = TypeVar("Result")


def group(dispatch: int, prompt_index: int) -> Group:
    """Tokens and rewards that no other group has."""
    generator = np.random.default_rng(dispatch)
    return Group(
        prompt_index=prompt_index,
        prompt_tokens=generator.integers(0, 150_000, 6).astype(np.int32),
        response_tokens=generator.integers(0, 150_000, RESPONSES * TOKENS).astype(np.int32),
        response_lengths=np.full(RESPONSES, TOKENS, dtype=np.int32),
        rewards=generator.integers(0, 2, RESPONSES).astype(np.float64),
        finish_reasons=(FinishReason.STOP,) * RESPONSES,
    )


def fill(path: Path, groups: int) -> None:
    """A ledger in which so many groups are trained, as a run would have left it."""
    steps = groups // PER_STEP
    plan = Plan(
        seed=0, prompts=PROMPTS, groups_per_step=PER_STEP, max_staleness=STALENESS, steps=steps + 2 * STEPS + STALENESS
    )
    Ledger.create(path, plan).close()

    # What the tokens are is nothing to a database, as long as they are not all the same.
    samples = [group(dispatch, 0) for dispatch in range(1_000)]
    contents = [to_row(sample) for sample in samples]
    figures = [(*figures_of(sample), content_checksum(row)) for sample, row in zip(samples, contents, strict=True)]

    def rows(store: Store) -> Iterator[tuple[Any, ...]]:
        for dispatch in range(steps * PER_STEP):
            step = dispatch // PER_STEP + 1
            fixed = (dispatch, store.order.prompt_of(dispatch), "trained", "worker-0", step - 1, step - 1, step)
            yield *fixed, *figures[dispatch % len(figures)]

    metrics = json.dumps(METRICS)
    with closing(open_store(path)) as store:
        with store.transaction():
            store.write_groups(rows(store))
            store.write_contents((n, *contents[n % len(contents)]) for n in range(steps * PER_STEP))
            store.database.executemany(
                "INSERT INTO steps VALUES (?, ?, ?)",
                ((step, metrics, row_checksum(step, metrics)) for step in range(1, steps + 1)),
            )
            store.set_meta(step=steps)
            # A verification that fails now and then leaves an event.
            store.database.executemany(
                "INSERT INTO events (time, step, kind, message) VALUES (0, ?, 'verification failed', 'time limit')",
                ((step,) for step in range(steps)),
            )
            store.execute("INSERT INTO event_kinds VALUES ('verification failed', ?, 'time limit')", steps)
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Clock:
    """Seconds of each event."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, event: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = event()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def spread(self) -> dict[str, dict[str, float]]:
        """Milliseconds."""
        return {
            name: {
                "median": round(1e3 * statistics.median(values), 4),
                "p99": round(1e3 * float(np.quantile(values, 0.99)), 4),
                "count": len(values),
            }
            for name, values in self.seconds.items()
        }


def measure(path: Path) -> dict[str, dict[str, float]]:
    """Each event, step by step."""
    clock = Clock()
    for _ in range(OPENINGS):
        clock("opening", lambda: Ledger(path)).close()
    with Ledger(path) as ledger:
        run(ledger, clock, STEPS)
        for _ in range(STEPS // INTERVAL):
            step = ledger.step
            clock("rewind by 50 steps", lambda step=step: ledger.rewind(step - INTERVAL))  # type: ignore[misc]
    return clock.spread()


def run(ledger: Ledger, clock: Clock, steps: int) -> None:
    for _ in range(steps):
        leases = clock("lease", lambda: ledger.lease("worker", 2 * PER_STEP, 60))
        groups = {lease.dispatch: group(lease.dispatch, lease.prompt_index) for lease in leases}
        clock("renew", lambda groups=groups: ledger.renew("worker", groups, 60, Counters()))  # type: ignore[misc]
        clock("commit", lambda groups=groups: ledger.commit("worker", groups, Counters(busy_seconds=1.0)))  # type: ignore[misc]
        batch = clock("take", lambda: ledger.take(PER_STEP))
        assert batch is not None
        clock("finish_step", lambda batch=batch: ledger.finish_step(batch.step, METRICS))  # type: ignore[misc]
        clock("status", ledger.status)
        clock("workers", ledger.workers)
        clock("events", ledger.events)
        clock("newest metrics", lambda: ledger.steps(after=ledger.step - 1))
        clock("browse the oldest data", lambda: ledger.browse("age"))
        clock("browse a worker's newest", lambda: ledger.browse(worker="worker"))
        clock("browse what was cut off", lambda: ledger.browse("worst", flag="truncated"))
        if batch.step % INTERVAL == 0:
            clock("make_durable", ledger.make_durable)


@contextmanager
def ledger_of(groups: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger.sqlite"
        fill(path, groups)
        yield path


def main() -> None:
    results = {}
    for groups in GROUPS:
        with ledger_of(groups) as path:
            size = path.stat().st_size
            results[f"{groups:,} groups"] = {"bytes_per_group": round(size / groups), "milliseconds": measure(path)}
    first, last = (results[f"{groups:,} groups"]["milliseconds"] for groups in (GROUPS[0], GROUPS[-1]))
    write_results(
        "growth",
        targets={"medians, largest ledger / smallest": "under 2 for each event"},
        ratios={name: round(last[name]["median"] / first[name]["median"], 2) for name in first},
        ledgers=results,
    )


if __name__ == "__main__":
    main()
