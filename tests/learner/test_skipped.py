"""The files in which the groups of updates that were not made are kept."""

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from driftproof.learner.skipped import KEPT, Skipped, save_skipped
from tests.groups import make_batch, make_group, random_groups


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_line_says_all_that_is_known_of_a_group(tmp_path: Path):
    bad = make_group(
        [7, 8],
        [[1, 2], [3]],
        [math.nan, 1e308],
        prompt_index=5,
        behavior_logprobs=[-0.5, -0.25, -1.0],
        problems=("time", ""),
    )
    skipped = Skipped(loss=math.nan, grad_norm=math.inf, offending={1: (0,)})
    batch = make_batch(make_group([1], [[2]]), bad, step=42)
    path = save_skipped(tmp_path / "skipped", batch, [skipped])
    assert path.name == "step-00000042.jsonl"
    assert read(path) == [
        {
            "step": 42,
            "loss": "nan",
            "grad_norm": "inf",
            "prompt_index": 5,
            "age": 0,
            "not_finite": [0],
            "rewards": [None, 1e308],
            "response_lengths": [2, 1],
            "finish_reasons": ["stop", "stop"],
            "problems": ["time", ""],
            "prompt_tokens": [7, 8],
            "response_tokens": [[1, 2], [3]],
            "trained": None,
            "behavior_logprobs": [[-0.5, -0.25], [-1.0]],
        }
    ]


def test_the_newest_files_are_kept_and_nothing_half_written(tmp_path: Path):
    groups = random_groups(1, count=2)
    everything = Skipped.of(groups, [False] * 8, first=0, loss=0.0, grad_norm=math.inf)
    for step in range(1, KEPT + 4):
        save_skipped(tmp_path, make_batch(*groups, step=step), [everything])
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [f"step-{step:08d}.jsonl" for step in range(4, KEPT + 4)]
    assert [line["not_finite"] for line in read(tmp_path / names[0])] == [[], []]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 9))
def test_the_blamed_are_those_that_are_not_finite_or_all(flags: list[list[bool]], first: int):
    groups = [make_group([1], [[2]] * len(of_group)) for of_group in flags]
    flat = [flag for of_group in flags for flag in of_group]
    found = Skipped.of(groups, flat, first=first, loss=0.0, grad_norm=math.nan).offending
    if any(flat):
        assert {(n, r) for n, responses in found.items() for r in responses} == {
            (first + n, r) for n, of_group in enumerate(flags) for r, flag in enumerate(of_group) if flag
        }
        assert all(found.values())
    else:
        assert found == {first + n: () for n in range(len(groups))}
