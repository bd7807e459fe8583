"""Real processes on one ledger at once."""

import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.maintenance.check import check_ledger
from driftproof.ledger.records import FINISHED, Plan
from tests.ledger.crew import make_group

CREW = Path(__file__).with_name("crew.py")
PLAN = Plan(seed=1, prompts=17, groups_per_step=4, max_staleness=3, steps=50)


def start(path: Path, role: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(CREW), str(path), role, name], stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> list[list[int]]:
    """The lines that the process printed, as numbers."""
    output, _ = process.communicate(timeout=300)
    # A process that was killed may have been in the middle of a line.
    whole = output[: output.rfind("\n") + 1]
    return [[int(word) for word in line.split()] for line in whole.splitlines()]


def test_nothing_is_lost_and_nothing_is_there_twice_whoever_is_killed(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, PLAN) as ledger:
        writers = {"1": start(path, "write", "1")}
        # However slowly it starts, it has written something before it is killed.
        while not ledger.status().ready:
            time.sleep(0.001)
        writers |= {name: start(path, "write", name) for name in ("2", "3")}
        trainer = start(path, "train", "0")
        wait_for_step(ledger, 10)
        writers["1"].kill()
        wait_for_step(ledger, 20)
        # The trainer dies between two lines of its program, which is sometimes between taking and finishing.
        trainer.kill()
        first = end(trainer)
        step = ledger.step
        ledger.rewind(step - 3)
        trainer = start(path, "train", "0")
        second = end(trainer)
        accepted = {name: [line[0] for line in end(writer)] for name, writer in writers.items()}
        records = list(ledger.records())
        order = [ledger.prompt_of(n) for n in range(len(records))]

    total = PLAN.groups_per_step * PLAN.steps
    assert ledger_state(path) == FINISHED
    assert [record.dispatch for record in records] == list(range(total))
    assert [record.group.prompt_index for record in records] == order
    assert all(record.state == "trained" for record in records)
    trained_steps = sorted(record.trained_step or 0 for record in records)
    assert trained_steps == [step for step in range(1, PLAN.steps + 1) for _ in range(PLAN.groups_per_step)]
    # Each group is the one that the ledger said it accepted, and was accepted from one writer only.
    assert all(record.group.response_tokens.tolist() == [record.dispatch, int(record.worker)] for record in records)
    said = sorted(dispatch for numbers in accepted.values() for dispatch in numbers)
    assert len(said) == len(set(said))
    # The writer that was killed may not have come to say its last.
    assert total - len(said) <= 1
    # What the first trainer did up to the rewind stands, and the second did all the rest.
    by_step = [
        sorted(record.dispatch for record in records if record.trained_step == n) for n in range(1, PLAN.steps + 1)
    ]
    assert [sorted(batch) for batch in first[: step - 3] + second] == by_step
    assert len(accepted["1"]) > 0


def test_whoever_is_killed_whenever_nothing_is_wrong(tmp_path: Path):
    """A dozen kills at random moments; the trainer goes on from its newest checkpoint, as a resume does."""
    generator = random.Random(7)
    path = tmp_path / "ledger.sqlite"
    plan = replace(PLAN, steps=100_000)
    with Ledger.create(path, plan) as ledger:
        crew = {name: start(path, "train" if name == "0" else "write", name) for name in "012"}
        step = 0
        for kill in range(12):
            victim = generator.choice("012")
            wait_for_step(ledger, step + 2)
            time.sleep(generator.random() / 50)
            step = ledger.step
            crew[victim].kill()
            crew[victim].wait()
            if victim == "0":
                step = max(step - generator.randint(0, 2), 0)
                ledger.rewind(step)
            elif generator.random() < 0.5:
                ledger.release(victim)
            assert kill % 3 or check_ledger(path).findings == ()
            crew[victim] = start(path, "train" if victim == "0" else "write", victim)
        wait_for_step(ledger, ledger.step + 2)
        for process in crew.values():
            process.kill()
            process.communicate()
        assert check_ledger(path).findings == ()
        counts = [len(ages) for ages in ledger.ages_by_step()]
        assert counts[: ledger.step] == [plan.groups_per_step] * ledger.step
        # What the killed held is given out again, and every number that was given out comes to be trained.
        ledger.rewind(ledger.step)
        leases = ledger.lease("9", ledger.status().leased, 1000.0)
        ledger.commit("9", {lease.dispatch: make_group(lease.dispatch, lease.prompt_index, 9) for lease in leases})
        while (batch := ledger.take(plan.groups_per_step)) is not None:
            ledger.finish_step(batch.step, {})
        status = ledger.status()
        assert status.dispatched - status.trained < plan.groups_per_step
    assert check_ledger(path).findings == ()


def ledger_state(path: Path) -> str:
    with Ledger(path) as ledger:
        return ledger.state()


def wait_for_step(ledger: Ledger, step: int) -> None:
    deadline = time.monotonic() + 300
    while ledger.step < step:
        assert time.monotonic() < deadline, "the crew does not get on"
        time.sleep(0.002)
