"""Recorded groups and live rollouts in one run, in a stated proportion."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftproof.ledger.codec import row_checksum
from driftproof.ledger.ledger import Ledger
from driftproof.runtime.build import open_inbox
from driftproof.tasks.codec import Codec
from tests.runtime import runs
from tests.runtime.runs import summary, train, trained_once, write_recipe

TEXTS = {f"{i}+1=": (str(i + 1), "9", str(i)) for i in range(3)}
"""The recorded responses by prompt."""


@pytest.fixture(autouse=True, scope="module")
def scorers() -> Iterator[None]:
    """Processes find `scorers` as a user's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(runs.__file__).parent))
        yield


@pytest.fixture(scope="module")
def recipe(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixed")
    rows = [{"prompt": prompt, "completions": texts, "rewards": [1.0, 0.5, -2.0]} for prompt, texts in TEXTS.items()]
    (directory / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_recipe(directory, tiny_model_dir)
    text = path.read_text()
    mixed = f'[rollouts]\npath = "{directory / "trace.jsonl"}"\nrecorded_share = 0.25\n'
    path.write_text(text.replace("[rollouts]\n", mixed))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four steps, and resumed for two more."""
    run = tmp_path_factory.mktemp("runs") / "run"
    done = train(recipe, "--run.directory", run)
    assert done.code == 0, done.stderr
    trained_once(run, steps=4, groups_per_step=4)
    resumed = train("--resume", run, "--run.steps", 6)
    assert resumed.code == 0, resumed.stderr
    trained_once(run, steps=6, groups_per_step=4)
    return run


def test_exactly_the_share_is_recorded_and_verbatim(run: Path, tiny_model_dir: Path) -> None:
    codec = Codec(tiny_model_dir)
    with Ledger(run / "ledger.sqlite") as ledger:
        records, snapshots = list(ledger.records()), ledger.workers()["worker-0"].snapshot
    live = 8
    assert [record.group.retokenized for record in records] == [False, False, False, True] * 6
    assert [record.group.prompt_index >= live for record in records] == [False, False, False, True] * 6
    recorded = [record.group for record in records if record.group.retokenized]
    assert [sorted(g.prompt_index for g in recorded[first : first + 3]) for first in (0, 3)] == [[8, 9, 10]] * 2
    for group in recorded:
        texts = TEXTS[codec.decode(group.prompt_tokens.tolist())]
        assert tuple(codec.decode(tokens.tolist()) for tokens in group.split()) == texts
        assert all(tokens[-1] == codec.eos_id for tokens in group.split())
        assert group.rewards.tolist() == [1.0, 0.5, -2.0]
    assert all(record.group.size == 4 for record in records if not record.group.retokenized)
    assert snapshots > 0, "the live engine follows the weights"
    assert 0 <= summary(run)["accuracy_after"] <= 1, "held out is what the live task holds out"


def test_another_share_or_trace_is_another_run(run: Path, tmp_path: Path) -> None:
    refused = train("--resume", run, "--rollouts.recorded_share", 0.5)
    assert (refused.code, "rollouts.recorded_share 0.25, not 0.5" in refused.stderr) == (2, True)
    (tmp_path / "other.jsonl").write_text('{"prompt": "1+1=", "completion": "2", "label": true}\n')
    refused = train("--resume", run, "--rollouts.path", tmp_path / "other.jsonl")
    assert (refused.code, "a trace of 3 recorded prompts beside the task's, not 1" in refused.stderr) == (2, True)


def test_there_is_no_inbox(run: Path) -> None:
    with pytest.raises(ValueError, match="mixes recorded groups with live ones"):
        open_inbox(run)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("--objective.name", "grpo"), "'grpo' needs behavior_logprobs, which recorded traces do not have"),
        (("--rollouts.workers", 0), "with rollouts.workers 0 nobody would write them"),
        (("--rollouts.path", "nowhere.jsonl"), "nowhere.jsonl: No such file or directory"),
        (("--engine.name", "recorded"), "a recorded trace is no engine any more"),
        (("--task.name", "recorded"), "rollouts.recorded_share 1"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings: tuple[str, object], words: str, recipe: Path) -> None:
    refused = train(recipe, "--dry-run", *settings)
    assert refused.code == 2
    assert words in refused.stderr


def test_a_share_of_one_is_the_trace_alone_and_the_tasks_own_prompts_are_held_out(recipe: Path, tmp_path: Path) -> None:
    done = train(recipe, "--run.directory", tmp_path / "run", "--rollouts.recorded_share", 1, "--run.steps", 3)
    assert done.code == 0, done.stderr
    trained_once(tmp_path / "run", steps=3, groups_per_step=4)
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert all(record.group.retokenized for record in ledger.records())
        assert {record.group.prompt_index for record in ledger.records()} == {8, 9, 10}
    assert 0 <= summary(tmp_path / "run")["accuracy_after"] <= 1
    with pytest.raises(ValueError, match="nothing for workers to write"):
        open_inbox(tmp_path / "run")


def test_a_run_on_a_trace_alone_of_an_older_version_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Its ledger calls the prompts of the trace live ones; they come in the same order."""
    trace, run = recipe.parent / "trace.jsonl", tmp_path / "run"
    alone = tmp_path / "alone.toml"
    sections = re.sub(r"\[(task|rollouts)\][^\[]*", "", recipe.read_text())
    rollouts = f'[rollouts]\npath = "{trace}"\nrecorded_share = 1\nmax_staleness = 2\n'
    alone.write_text(f'{sections}\n{rollouts}[task]\nname = "recorded"\nheldout_fraction = 0.3\n')
    done = train(alone, "--run.directory", run)
    assert done.code == 0, done.stderr
    assert "nll_heldout_after" in summary(run)
    with sqlite3.connect(run / "ledger.sqlite") as database:
        (plan,) = database.execute("SELECT value FROM meta WHERE key = 'plan'").fetchone()
        assert [json.loads(plan)[name] for name in ("prompts", "recorded_prompts", "recorded_share")] == [0, 2, 1.0]
        older = json.dumps(json.loads(plan) | {"prompts": 2, "recorded_prompts": 0, "recorded_share": 0.0})
        row = (older, row_checksum("plan", older))
        database.execute("UPDATE meta SET value = ?, checksum = ? WHERE key = 'plan'", row)
    resumed = train("--resume", run, "--run.steps", 6)
    assert resumed.code == 0, resumed.stderr
    trained_once(run, steps=6, groups_per_step=4)


def test_lengths_of_both_kinds_are_checked(recipe: Path, tmp_path: Path) -> None:
    row = {"prompt": "1+1=", "completion": "1" * 20_000, "reward": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(row))
    refused = train(recipe, "--dry-run", "--rollouts.path", tmp_path / "long.jsonl")
    assert (
        "long.jsonl:1: the prompt '1+1=' is too long: it and its longest response have 20,005 tokens" in refused.stderr
    )
    refused = train(recipe, "--dry-run", "--sampling.max_tokens", 16384)
    assert "lower sampling.max_tokens" in refused.stderr
    assert train(recipe, "--dry-run").code == 0
