"""The storm's judge finds what it is there to find, and the storm leaves out no place and no victim."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.chaos import processes, storm, witness
from benchmarks.chaos.judge import Evidence, Held, judge, surviving
from benchmarks.chaos.repeat import compare
from driftproof import faults
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from driftproof.weights.checkpoints import list_checkpoints
from driftproof.weights.files import write_tensors
from tests.groups import make_group
from tests.ledger.tampering import UNTRAINED, tamper, with_content_of

STEPS, GROUPS_PER_STEP = 4, 2
PLAN = Plan(seed=0, prompts=5, groups_per_step=GROUPS_PER_STEP, max_staleness=STEPS, steps=STEPS)


def play(path: Path, between: Callable[[Ledger], object] = lambda ledger: None) -> Evidence:
    """A run of four steps over a real ledger, with the notes that a witness takes; `between`: after the second step."""
    notes: dict[str, list[dict[str, Any]]] = {"commit": [], "train": []}
    with Ledger.create(path / "ledger.sqlite", PLAN) as ledger:
        for lease in ledger.lease("worker-0", 100, 60):
            group = make_group([1], [[lease.dispatch, 7], [8]], [0.0, 1.0], prompt_index=lease.prompt_index)
            ledger.commit("worker-0", {lease.dispatch: group})
            notes["commit"].append({"dispatch": lease.dispatch, "content": witness.content(group)})
        rewound = False
        while ledger.step < STEPS:
            batch = ledger.take(GROUPS_PER_STEP)
            assert batch is not None
            groups = [[int(group.response_tokens[0]), witness.content(group)] for group in batch.groups]
            step = batch.step
            notes["train"].append({"step": step, "before": f"{step - 1}", "after": f"{step}", "groups": groups})
            ledger.finish_step(step, {})
            if step == 2 and not rewound:
                rewound = True
                between(ledger)
        held = {
            record.dispatch: Held(
                prompt=record.group.prompt_index,
                content=witness.content(record.group),
                trained_step=record.trained_step,
            )
            for record in ledger.records()
        }
        steps = [metrics["step"] for metrics in ledger.steps()]
    return Evidence(
        plan=PLAN,
        commits=notes["commit"],
        acknowledged=[],
        trainings=notes["train"],
        held=held,
        steps=steps,
        published=str(STEPS),
    )


def test_all_is_well_where_a_resume_has_undone_a_step(tmp_path: Path) -> None:
    evidence = play(tmp_path, lambda ledger: ledger.rewind(1))
    assert [training["step"] for training in evidence.trainings] == [1, 2, 2, 3, 4]
    found = judge(evidence)
    assert (found.groups_committed, found.trained_once, found.trained_twice, found.lost) == (8, 8, [], [])
    assert found.problems == []


def test_a_group_that_is_trained_twice_and_the_one_that_is_lost_for_it_are_found(tmp_path: Path) -> None:
    again = f"{UNTRAINED} WHERE dispatch = 0"
    found = judge(play(tmp_path, lambda ledger: tamper(ledger.path, again)))
    assert (found.groups_committed, found.trained_once, found.trained_twice, found.lost) == (8, 6, [0], [7])


def test_a_group_whose_content_was_exchanged_is_lost(tmp_path: Path) -> None:
    assert judge(play(tmp_path, lambda ledger: tamper(ledger.path, *with_content_of(1, 0)))).lost == [0]


def test_what_a_worker_was_told_is_kept_must_be_kept(tmp_path: Path) -> None:
    evidence = play(tmp_path)
    tokens = evidence.held[3].content.partition("-")[0]
    assert judge(replace(evidence, acknowledged=[{"dispatch": 3, "tokens": tokens}])).lost == []
    assert judge(replace(evidence, acknowledged=[{"dispatch": 3, "tokens": "another"}])).lost == [3]
    held = {dispatch: group for dispatch, group in evidence.held.items() if dispatch != 3}
    assert judge(replace(evidence, held=held)).lost == [3]


def changed(training: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**training, **fields}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: {"trainings": [*e.trainings[:3], changed(e.trainings[3], before="x")]}, "noted .* step 3 "),
        (lambda e: {"published": "3"}, "noted .* step 4 "),
        (lambda e: {"steps": [1, 2, 4]}, "the ledger's steps are not 1 to 4"),
        (lambda e: {"trainings": e.trainings[:3]}, "noted .* step 4 "),
        (lambda e: {"commits": [*e.commits, e.commits[0]]}, r"accepted more than once: \[0\]"),
        (lambda e: {"held": {**e.held, 1: replace(e.held[1], prompt=e.held[0].prompt)}}, "more than once in an epoch"),
        (
            lambda e: {"held": {**e.held, 1: replace(e.held[1], trained_step=2)}},
            "step 1: the ledger names other groups",
        ),
    ],
)
def test_whatever_else_must_not_be_is_a_problem(change: Any, problem: str, tmp_path: Path) -> None:
    evidence = play(tmp_path)
    found = judge(replace(evidence, **change(evidence))).problems
    assert re.search(problem, "; ".join(found)), found


def test_the_history_that_survives_is_that_of_the_published_weights() -> None:
    def way_back(*notes: str) -> str:
        trainings = [{"step": int(note[1]), "before": note[0], "after": note[2]} for note in notes]
        return " ".join("?" if t is None else f"{t['before']}{n}{t['after']}" for n, t in surviving(trainings, 3, "d"))

    assert way_back("a1b", "b2c", "c3d") == "c3d b2c a1b"
    assert way_back("a1b", "b2x", "x3y", "b2c", "c3d") == "c3d b2c a1b"
    assert way_back("a1b", "b2c", "c3d", "b2x", "x3y") == "c3d b2c a1b", "somebody who should have ended did something"
    assert way_back("a1b", "x2c", "c3d") == "c3d x2c ?"
    assert way_back("a1b", "b2c", "c3x") == "?"


def test_the_witness_notes_what_processes_commit(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from tests.groups import make_group
from tests.ledger.tampering import UNTRAINED, tamper, with_content_of
plan = Plan(seed=0, prompts=5, groups_per_step=1, max_staleness=2, steps=2)
with Ledger.create(Path({str(tmp_path / "ledger.sqlite")!r}), plan) as ledger:
    ledger.lease("one", 1, 60)
    ledger.lease("other", 1, 60)
    groups = {{n: make_group([n], [[n]], prompt_index=ledger.prompt_of(n)) for n in range(2)}}
    assert ledger.commit("one", groups) == 1
    assert ledger.commit("one", groups) == 0
"""
    environment = storm.spied_environment(tmp_path)
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    prompt = {"dispatch": 0, "prompt_tokens": [0]}
    (note,) = witness.read(tmp_path / witness.NOTES)
    assert (note["what"], note["dispatch"]) == ("commit", 0)
    assert note["content"].startswith(witness.acknowledged(prompt, [{"tokens": [0]}])["tokens"])


@pytest.mark.parametrize("seed", range(5))
def test_a_storm_leaves_out_no_place_and_no_victim(seed: int) -> None:
    events = storm.plan(seed, kills=100, short=False)
    assert events == storm.plan(seed, kills=100, short=False)
    assert {event.what for event in events if event.kind == "place" and event.action == "kill"} == set(faults.PLACES)
    assert {event.what for event in events if event.kind == "kill"} == set(storm.VICTIMS)
    for_a_rewind = sum("rewind" in event.what for event in events)
    last = 1
    assert sum(event.kind != "full disk" and event.action == "kill" for event in events) + for_a_rewind + last == 100
    assert sum(event.kind == "full disk" for event in events) == 3
    assert {event.action for event in events} == {"kill", "fail", "slow"}


@pytest.mark.parametrize("seed", range(5))
def test_a_short_storm_kills_all_kinds_of_victims(seed: int) -> None:
    events = storm.plan(seed, kills=10, short=True)
    assert {event.what for event in events if event.kind == "kill"} == set(storm.VICTIMS)
    assert sum(event.action == "kill" for event in events) + 1 == 10


def test_what_is_not_whole_is_seen(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "step-00000001"
    snapshot.mkdir(parents=True)
    weights = snapshot / "model.safetensors"
    write_tensors(weights, {"weight": torch.ones(3)})
    assert processes.broken(tmp_path) == [f"{snapshot / 'config.json'}: is missing"]
    (snapshot / "config.json").write_text("{}")
    assert processes.broken(tmp_path) == []
    weights.write_bytes(weights.read_bytes()[:-1])
    (problem,) = processes.broken(tmp_path)
    assert "bytes of" in problem
    weights.write_bytes(weights.read_bytes()[:20])
    assert processes.broken(tmp_path) == [f"{weights}: is cut off"]


def test_runs_that_differ_in_a_tensor_or_a_metric_are_not_the_same(tmp_path: Path) -> None:
    def run(name: str, weight: float, loss: float) -> Path:
        path = tmp_path / name
        for directory in (path / "snapshots" / "latest", path / "checkpoints" / "step-00000001"):
            directory.mkdir(parents=True)
            for file in ("model.safetensors", "optimizer.safetensors"):
                write_tensors(directory / file, {"weight": torch.tensor([weight])})
        with Ledger.create(path / "ledger.sqlite", PLAN) as ledger:
            ledger.finish_step(1, {"loss": loss, "time/step_seconds": np.random.default_rng().random()})
        assert list_checkpoints(path / "checkpoints")
        return path

    one = run("one", 1.0, float("nan"))
    assert compare(one, run("same", 1.0, float("nan"))) == []
    assert len(compare(one, run("other weight", 2.0, float("nan")))) == 3
    assert compare(one, run("other loss", 1.0, 0.5)) == ["metrics differ: ['loss']"]
