"""What is pruned can never be needed; what is left counts as before."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.cli.main import main
from driftproof.errors import LedgerError
from driftproof.learner.loop import LearnerLoop
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.maintenance.check import check_run
from driftproof.ledger.maintenance.prune import prunable_step, prune
from driftproof.ledger.records import Plan
from driftproof.run import locked
from driftproof.weights.snapshots import Publisher
from tests.groups import make_group
from tests.learner.tiny import tiny_learner
from tests.ledger.made import PER_STEP, files_of_at_most, go_on, is_original, make_run, resume, trained_all_once


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """23 steps done, checkpoints of steps 15 and 20."""
    return make_run(tmp_path / "run")


@given(st.integers(0, 100), st.integers(0, 100), st.lists(st.integers(0, 100), max_size=4))
def test_only_steps_that_no_checkpoint_goes_back_to_are_pruned(step: int, keep: int, checkpoints: list[int]) -> None:
    found = prunable_step(step, keep, checkpoints)
    assert 0 <= found <= max(step - keep, 0)
    assert all(found <= checkpoint for checkpoint in checkpoints)
    assert checkpoints or found == 0
    assert not checkpoints or found in (0, step - keep, min(checkpoints))


@pytest.mark.parametrize("oldest", [False, True], ids=["newest checkpoint", "oldest checkpoint"])
def test_a_resume_after_pruning_trains_everything(run: Path, oldest: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        before, ages = ledger.status(), ledger.ages_by_step()
    assert main(["ledger", "prune", str(run), "--keep-steps", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("60 groups pruned, up to step 15 of 23; ")
    assert int(said.split("; ")[1].split()[0].replace(",", "")) > 60 * 300
    assert check_run(run).findings == ()
    with Ledger(run / "ledger.sqlite") as ledger:
        assert (ledger.status(), ledger.ages_by_step()) == (before, ages)
        assert [record.dispatch for record in ledger.records()] == list(range(60, 102))
    if oldest:
        shutil.rmtree(run / "checkpoints" / "step-00000020")
    with resume(run) as ledger:
        assert ledger.step == (15 if oldest else 20)
        go_on(run, ledger, 40)
        trained_all_once(ledger)
        records = list(ledger.records())
        assert [record.dispatch for record in records] == list(range(60, 160))
        assert all(is_original(record.group, record.dispatch) for record in records)
    assert check_run(run).findings == ()


def test_the_last_steps_are_kept(run: Path) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        assert prune(ledger, run / "checkpoints", 12) == 11 * PER_STEP
        assert prune(ledger, run / "checkpoints", 12) == 0
        assert prune(ledger, run / "checkpoints", 11) == PER_STEP
        assert prune(ledger, run / "checkpoints", 99) == 0
        assert ledger.pruned_step == 12
        assert next(ledger.records()).trained_step == 13


def test_without_a_checkpoint_nothing_is_pruned(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with Ledger(run / "ledger.sqlite") as ledger:
        assert prune(ledger, run / "checkpoints", 0) == 0
        assert len(list(ledger.records())) == 102


def test_what_is_pruned_cannot_be_gone_back_to(run: Path) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        with pytest.raises(LedgerError, match=r"cannot prune up to step 21: the newest checkpoint of .* is of 20"):
            ledger.prune(21)
        prune(ledger, run / "checkpoints", 0)
        with pytest.raises(LedgerError, match=r"cannot go back to step 14: .* trained up to step 15 held is pruned"):
            ledger.rewind(14)
        assert ledger.step == 23


def test_pruning_by_command_is_refused_while_the_run_is_worked_on(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(run):
        assert main(["ledger", "prune", str(run), "--keep-steps", "1"]) == 2
    assert "is in use by another driftproof" in capsys.readouterr().err
    assert main(["ledger", "prune", str(run), "--keep-steps", "-1"]) == 2
    assert "--keep-steps: '-1' is no whole number from 0" in capsys.readouterr().err
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.pruned_step == 0


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_pruning_on_a_full_disk_is_refused_in_a_sentence(
    run: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    size = int((run / "ledger.sqlite").stat().st_size * share)
    with files_of_at_most(size):
        assert main(["ledger", "prune", str(run), "--keep-steps", "0"]) == 1
    assert "ledger.sqlite" in (said := capsys.readouterr().err)
    assert "space" in said
    assert check_run(run).findings == ()
    assert main(["ledger", "prune", str(run), "--keep-steps", "0"]) == 0


def test_the_learner_prunes_at_its_checkpoints(tmp_path: Path) -> None:
    """Checkpoints of steps 2, 4, 6 and 7, of which two are kept."""
    plan = Plan(seed=0, prompts=7, groups_per_step=2, max_staleness=0, steps=7)
    (tmp_path / "base").mkdir()
    publisher = Publisher(tmp_path / "snapshots", tmp_path / "base")
    with Ledger.create(tmp_path / "ledger.sqlite", plan) as ledger:

        def write() -> None:
            for lease in ledger.lease("a", 9, 100.0):
                group = make_group([1], [[2, 3], [4]], [1.0, 0.0], prompt_index=lease.prompt_index)
                ledger.commit("a", {lease.dispatch: group})

        learner = tiny_learner(checkpoint_every=2, keep_groups=2)
        checkpoints, skipped = tmp_path / "checkpoints", tmp_path / "skipped"
        LearnerLoop(ledger, learner, publisher, checkpoints, skipped, [], write, stall_seconds=600.0).run()
        assert ledger.pruned_step == 5
        assert [record.trained_step for record in ledger.records()] == [6, 6, 7, 7]
    findings = check_run(tmp_path).findings
    assert all("config.json" in finding for finding in findings), "the base model has none"
