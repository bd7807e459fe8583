"""The tables of a run, from real ledgers."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from driftproof.report.summary import summarize
from driftproof.report.tables import before_after_table, events_table, groups_table

from .conftest import MakeLedger
from .ledgers import group, grow


def _shown(table: Any, width: int = 100) -> str:
    output = io.StringIO()
    Console(file=output, width=width, force_terminal=False).print(table)
    return output.getvalue()


def _letters(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def _dispatches(table: Any) -> list[int]:
    """The first column."""
    return [int(cell) for cell in table.columns[0].cells]


def test_before_and_after(make_ledger: MakeLedger) -> None:
    shown = _shown(before_after_table(summarize(make_ledger(3), Path("model"))), width=80)
    sampled, greedy = (line.split() for line in shown.splitlines() if "accuracy" in line)
    assert sampled == ["accuracy,", "sampled", "0.340", "±", "0.010", "0.620", "±", "0.020", "+0.280", "2,048"]
    assert greedy == ["accuracy,", "greedy", "0.400", "0.750", "+0.350", "512"]


def test_before_and_after_of_recorded_traces(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(3, evaluated=False)
    ledger.record_evaluation("heldout_nll", 0, {"health/positive_nll": 1.0, "health/negative_nll": 1.1})
    ledger.record_evaluation("heldout_nll", 3, {"health/positive_nll": 0.8, "health/negative_nll": 1.2})
    shown = _shown(before_after_table(summarize(ledger, Path("model"))))
    figures = [line.split()[-3:] for line in shown.splitlines() if "NLL" in line]
    assert figures == [["1.000", "0.800", "-0.200"], ["1.100", "1.200", "+0.100"], ["1.100", "1.500", "+0.400"]]
    assert "accuracy" not in shown


def test_what_was_not_measured(make_ledger: MakeLedger) -> None:
    assert "not evaluated" in _shown(before_after_table(summarize(make_ledger(1, evaluated=False), Path("model"))))
    stopped = _shown(before_after_table(summarize(make_ledger(1, planned=2), Path("model"))))
    assert [line.split()[2:] for line in stopped.splitlines() if "greedy" in line] == [["0.400", "-", "512"]]


def test_events(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(1)
    assert "none" in _shown(events_table(ledger.events()))
    ledger.record_event("verification failed", "first")
    ledger.record_event("verification failed", "prompt 3: [red]x[/red]\x1b[2J\n" + "y" * 500)
    shown = _shown(events_table(ledger.events()), width=200)
    message = " ".join(shown.split())
    assert "verification failed 2 prompt 3: [red]x[/red]\\x1b[2J\\nyyy" in message
    assert shown.count("y") < 200
    assert "\x1b" not in shown


def test_groups_by_reward_age_and_prompt(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(6, planned=20)
    grow(ledger, 1)
    best, worst, none = (lease.dispatch for lease in ledger.lease("worker-0", 3, 60))
    rewards = {best: [1.0, 1.0], worst: [-2.0, 0.0], none: [math.nan, math.nan]}
    ledger.commit("worker-0", {dispatch: group(ledger, dispatch, given) for dispatch, given in rewards.items()})

    def order(by: Any, limit: int = 100) -> list[int]:
        return _dispatches(groups_table(ledger, _letters, by=by, limit=limit))

    records = {record.dispatch: record for record in ledger.records()}
    assert order("best")[0] == best
    assert order("worst")[0] == worst
    # No reward is neither good nor bad.
    assert order("best")[-1] == none
    assert order("worst")[-1] == none
    ages = [records[dispatch].age or 0 for dispatch in order("age")]
    assert len(ages) == ledger.status().trained == 14
    assert ages == sorted(ages, reverse=True)
    prompts = [records[dispatch].group.prompt_index for dispatch in order("prompt")]
    assert prompts == sorted(prompts)
    assert len(prompts) == len(records)
    assert len(order("best", limit=4)) == 4


def test_a_group_with_its_texts(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(0, planned=4)
    (lease,) = ledger.lease("worker-0", 1, 60)
    ledger.commit("worker-0", {0: group(ledger, 0, [0.0, 1.0, math.nan, -0.5])})
    ledger.take(1)
    shown = _shown(groups_table(ledger, _letters))
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert f"0 {lease.prompt_index} 1 0 0.167 p" in lines
    assert "1 bbb" in lines
    assert "no reward ccc" in lines
    assert "1 of 4 responses have no reward: time limit" in lines


@pytest.mark.parametrize("width", [40, 80, 200])
def test_texts_cannot_disturb_the_terminal(make_ledger: MakeLedger, width: int) -> None:
    ledger = make_ledger(1, planned=4)
    evil = "[bold red]\x1b[2J\r\n\u202e[/]" + "x" * 500 + "\\boxed{2}"
    table = groups_table(ledger, lambda tokens: evil, limit=1)
    shown = _shown(table, width)
    joined = shown.replace("\n", "").replace(" ", "")
    assert not {"\x1b", "\r", "\u202e"} & set(shown)
    assert "[boldred]\\x1b[2J\\r\\n\\u202e[/]" in joined
    assert "\\boxed{2}" in joined
    assert "x" * 200 not in joined


def test_no_groups(make_ledger: MakeLedger) -> None:
    assert "no groups" in _shown(groups_table(make_ledger(0), _letters))
