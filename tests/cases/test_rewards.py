"""Rewards as people bring them, and responses that break their verifier: R1, R2, R3 and H-b of the public reports."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftproof import tasks
from driftproof.cli.main import main
from driftproof.errors import TaskError, VerifierError
from driftproof.ledger.reader import LedgerReader
from driftproof.runtime.build import open_inbox
from driftproof.types import Prompt, Verdict
from driftproof.verify import Item, Verifier, VerifierPool, build
from driftproof.verify.trial import try_rewards
from tests.runtime.runs import train, write_recipe

HERE = Path(__file__).parent
SECONDS = 60.0
"""Longer than any function here needs on a busy machine."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.syspath_prepend(HERE.parent / "runtime")


def pool(*functions: str, timeout_seconds: float = SECONDS, **options: Any) -> VerifierPool:
    names = [f"reward_functions:{function}" for function in functions]
    return VerifierPool(names, processes=1, timeout_seconds=timeout_seconds, **options)


def item(response: str, answer: str = "2", **columns: Any) -> Item:
    return Item(response=response, answer=answer, prompt="1+1=", columns=columns)


# R1: functions of TRL's form.

RESULTS = ("array", "booleans", "boolean_array", "tensor", "tensors", "generator", "waits", "right")


def test_r1_whatever_a_function_returns_becomes_rewards_one_for_each_function() -> None:
    with pool(*RESULTS, "judge", "keywords_too") as verifier:
        verdicts = verifier.score([item("2"), item("3")])
    for verdict, reward in zip(verdicts, (1.0, 0.0), strict=True):
        assert verdict == Verdict(
            reward=reward * (len(RESULTS) + 2),
            parts=tuple((name, reward) for name in (*RESULTS, "judge", "keywords_too")),
        )


def test_r1_columns_of_the_data_are_keywords() -> None:
    with pool("columns", "all_by_keyword") as verifier:
        good = Item(response="2", answer="", prompt="1+1=", columns={"solution": "2", "weight": 3}, tokens=np.arange(5))
        assert [v.parts for v in verifier.score([good])] == [(("columns", 3.0), ("all_by_keyword", 5.0))]


def test_r1_a_column_that_is_not_there_is_named() -> None:
    with pool("needs_solution") as verifier:
        (verdict,) = verifier.score([item("2", weight=1)])
    assert verdict.reward is None
    assert "it needs solution; the prompt's row does not have that column, it has weight" in verdict.problem


def test_r1_conversations_are_messages() -> None:
    asked = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1="})
    with pool("chat") as verifier:
        items = [Item(response=text, answer="2", prompt="1+1=", messages=asked) for text in ("2", "3")]
        assert verifier.score(items) == [Verdict(reward=1.0), Verdict(reward=0.0)]


@pytest.mark.parametrize("function", ["none", "none_in_an_array"])
def test_r1_none_is_no_reward_alone_and_left_out_of_a_sum(function: str) -> None:
    with pool(function) as verifier:
        alone = verifier.score([item("pass"), item("other")])
    assert alone == [Verdict(reward=None, problem="the verifier gave no reward (None)"), Verdict(reward=1.0)]
    assert verifier.failures == {"timeouts": 0, "crashes": 0, "invalid_rewards": 0}
    with pool(function, "length", weights=[1, 0.5]) as verifier:
        assert verifier.score([item("pass")]) == [Verdict(reward=2.0, parts=((function, None), ("length", 4.0)))]


def test_r1_several_functions_have_weights() -> None:
    with pool("right", "length", weights=[1, -0.25]) as verifier:
        assert verifier.score([item("2")]) == [Verdict(reward=0.75, parts=(("right", 1.0), ("length", 1.0)))]


@pytest.mark.parametrize(
    ("names", "weights", "problem"),
    [
        (["exact", "math"], [1.0], "task.weights has 1 numbers for 2 functions"),
        (["exact", "math"], [0, 0], "all 0"),
        (["exact"], [float("nan")], "a weight must be a finite number"),
        (["exact", "exact"], [], "'exact' twice"),
        ([], [], "empty list"),
        (["exact", "maths"], [], "unknown verifier 'maths'; did you mean 'math'"),
    ],
)
def test_r1_weights_that_do_not_fit_are_refused(names: list[str], weights: list[float], problem: str) -> None:
    with pytest.raises(VerifierError, match=problem):
        build(names, weights=weights)


def test_functions_that_compare_responses_get_a_group_together_if_they_are_asked_to() -> None:
    items = [
        Item(response=t, answer="", prompt="", group=g) for g, t in enumerate(("a", "bb", "", "ccc")) for _ in "ab"
    ]
    group = [Item(response=text, answer="", prompt="", group=0) for text in ("bb", "a", "ccc")]
    with pool("shortest") as verifier:
        assert [v.reward for v in verifier.score(group)] == [1.0, 1.0, 1.0]
    with pool("shortest", together=True) as verifier:
        assert [v.reward for v in verifier.score(group)] == [0.0, 1.0, 0.0]
        assert [v.reward for v in verifier.score(items)] == [1.0] * 8


def test_in_a_group_that_is_scored_together_only_the_response_that_breaks_it_pays() -> None:
    group = [Item(response=text, answer="", prompt="", group=0) for text in ("bb", "break", "ccc")]
    with pool("shortest_unless_it_breaks", together=True) as verifier:
        verdicts = verifier.score(group)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0]
    assert [bool(verdict.problem) for verdict in verdicts] == [False, True, False]


# R3: verl's form, and signatures of no form.


def test_r3_verls_signature_works() -> None:
    row = {"data_source": "sums", "extra_info": {"index": 3}, "reward_model": {"style": "rule", "ground_truth": 2}}
    with pool("compute_score", "compute_score_later") as verifier:
        assert [v.parts for v in verifier.score([item("2", "2", **row)])] == [
            (("compute_score", 1.0), ("compute_score_later", 0.0))  # the second compares with the number 2
        ]
        assert "AssertionError" in verifier.score([item("2")])[0].problem


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (
            "prompt_completion",
            "prompt_completion(prompt: 'str', completion: 'str'): the names of its parameters do not",
        ),
        ("answer_first", "answer_first(gold: 'str', text: 'str'): the names of its parameters do not say"),
        ("three", "three needs prompt, which nobody gives"),
        ("lists", "lists needs completion, prompt, which nobody gives"),
        ("needs_the_trainer", "needs_the_trainer needs trainer_state, which nobody gives"),
        ("Judge", "Judge is a type, not a function"),
    ],
)
def test_r3_an_unknown_signature_is_refused_by_name(function: str, problem: str) -> None:
    with pytest.raises(VerifierError) as refused:
        pool(function)
    assert problem in str(refused.value)
    assert "valid: (text, answer) or (response, answer); TRL's (completions, **columns)" in str(refused.value)


def test_r3_a_list_of_another_length_is_no_reward() -> None:
    with pool("too_few") as verifier:
        (verdict,) = verifier.score([item("2")])
    assert verdict == Verdict(
        reward=None, problem="for 1 completion the reward function must return a list of 1 number, not [] of 0"
    )


# H-b: responses that break a verifier which otherwise works.

BREAKING = ("loop", "raise", "recurse", "memory", "numbers", "killed", "nan", "text")


def test_hb_a_response_that_breaks_its_verifier_gets_0_within_its_time() -> None:
    with pool("fragile", timeout_seconds=1.0, memory_gib=0.5) as verifier:
        for text in BREAKING:
            started = time.monotonic()
            broke, right = verifier.score([item(text), item("2")])
            assert (broke.reward, right) == (0.0, Verdict(reward=1.0)), text
            assert broke.problem
            assert time.monotonic() - started < 30
        assert verifier.failures["timeouts"] == 2  # the loop and the number


def test_hb_also_where_every_response_to_a_prompt_breaks_it() -> None:
    with pool("fragile") as verifier:
        assert [verdict.reward for verdict in verifier.score([item("raise"), item("nan")])] == [0.0, 0.0]
    with pool("unboxed") as verifier:
        assert [verdict.reward for verdict in verifier.score([item("2")])] == [0.0]


def test_hb_a_verifier_that_is_broken_gives_no_reward() -> None:
    with pool("broken") as verifier:
        assert [verdict.reward for verdict in verifier.score([item("2"), item("loop")])] == [None, None]
    with pool("broken_for_some") as verifier:
        verdicts = verifier.score([item("2", "unreadable"), item("raise"), item("2")])
        assert [verdict.reward for verdict in verdicts] == [None, 0.0, 1.0]


@pytest.mark.parametrize(("on_timeout", "reward"), [("zero", 0.0), ("none", None), (-1.0, -1.0)])
def test_hb_what_it_costs_can_be_set(on_timeout: Any, reward: float | None) -> None:
    with pool("signed", on_timeout=on_timeout) as verifier:
        assert [verdict.reward for verdict in verifier.score([item("raise"), item("3")])] == [reward, -1.0]


def test_hb_the_published_case() -> None:
    pytest.importorskip("math_verify", reason="needs the extra driftproof[math]")
    with closing(build("math", timeout_seconds=2.0)) as verifier:
        verdicts = verifier.score([item("\\boxed{9^{9^{9}}}", "18"), item("\\boxed{18}", "18")])
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0]


# R2: rewards are tried before they are trusted.


def prompts(*answers: str) -> list[Prompt]:
    return [Prompt(index=i, text=f"{answer}+0=", answer=answer) for i, answer in enumerate(answers)]


def tried(verifier: Verifier, *answers: str, built_in: bool = False) -> Any:
    return try_rewards("mine", verifier, prompts(*answers), lambda prompt: prompt.answer, built_in=built_in)


def test_r2_right_and_wrong_answers_are_scored_in_the_writing_that_is_understood() -> None:
    with pool("unboxed") as verifier:
        trial = tried(verifier, "1", "2", "3", "4", "5", "6", "7", "8")
    assert [(t.right.response, t.reward.reward, t.wrong.response, t.wrong_reward.reward) for t in trial.tried] == [
        (f"\\boxed{{{n}}}", 1.0, f"\\boxed{{{n + 1}}}", 0.0) for n in (1, 3, 5, 7)
    ]
    assert trial.warnings == ()


def test_r2_a_wrong_answer_is_found_where_all_prompts_have_one_answer() -> None:
    with closing(build("exact")) as verifier:
        for answer, wrong in [("19", "10"), ("x+3y", "x+4y"), ("blue", "not blue")]:
            (trial,) = tried(verifier, answer, built_in=True).tried
            assert (trial.wrong.response, trial.tells) == (wrong, True)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("broken", "verifier crashed: RuntimeError: no licence; correct the verifier"),
        ("nothing", "the verifier gave no reward (None)"),
        ("needs_solution", "it needs solution"),
        ("too_few", "must return a list of 1 number"),
    ],
)
def test_r2_a_verifier_that_scores_no_right_answer_is_refused(function: str, problem: str) -> None:
    with (
        pool(function) as verifier,
        pytest.raises(VerifierError, match="gave no reward to the right answer") as refused,
    ):
        tried(verifier, "1", "2")
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("function", "answers", "warning"),
    [
        ("length", ["1", "2", "3"], "gives right answers no more than wrong ones"),
        ("shortest", ["1", "22", "333"], "verify.together = true"),
        ("broken_for_some", ["1", "unreadable", "3"], "gave no reward to the right answers of 1 of 3 prompts"),
        ("signed", ["1", "2"], "set verify.on_timeout = -1,"),
    ],
)
def test_r2_what_is_hardly_meant_is_told(function: str, answers: list[str], warning: str) -> None:
    with pool(function) as verifier:
        trial = tried(verifier, *answers)
    assert any(warning in sentence for sentence in trial.warnings), trial.warnings


# Through the command line.


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A recipe of four steps on single digits; scored by `scorers:parity`."""
    return write_recipe(tmp_path, tiny_model_dir)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["check"], ["train"]])
@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("broken", "no licence"),
        ("prompt_completion", "the names of its parameters do not say"),
        ("needs_solution", "it needs solution"),
    ],
)
def test_r2_and_r3_are_refused_before_training(
    command: list[str], function: str, problem: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["--task.verifier", f"reward_functions:{function}", "--run.directory", str(run)]
    assert main([command[0], str(recipe), *command[1:], *settings]) in (1, 2)
    out = said(capsys)
    assert problem in out
    assert "can be run here" not in out
    assert not run.exists()


@pytest.mark.parametrize(
    ("verifier", "gold", "problem"),
    [
        ("math", "\\\\text{}", "gave no reward to the right answer of any of the 4 prompts"),
        ("math-number", "blue", "does not read the gold answers: of 4 that were tried it accepts none"),
    ],
)
def test_r2_a_gold_answer_that_no_verifier_reads_is_refused(
    verifier: str, gold: str, problem: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("math_verify", reason="needs the extra driftproof[math]")
    (tmp_path / "data.jsonl").write_text("".join(f'{{"prompt": "{i}+0=", "answer": "{gold}"}}\n' for i in range(10)))
    assert main(["train", str(recipe), "--dry-run", "--task.verifier", verifier]) == 2
    assert problem in said(capsys)


@pytest.mark.parametrize("command", ["train", "check"])
def test_r2_the_trial_is_shown(command: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run"] if command == "train" else []
    assert main([command, str(recipe), *arguments, "--task.verifier", '["exact", "reward_functions:length"]']) == 0
    captured = capsys.readouterr()
    shown = captured.err if command == "train" else captured.out
    assert "rewards of exact, reward_functions:length, tried on 4 prompts" in shown
    assert "2 (exact 1, length 1)" in shown
    if command == "train":
        assert tomllib.loads(captured.out)["task"]["verifier"] == ["exact", "reward_functions:length"]


@pytest.mark.parametrize("outage", ["raise RuntimeError('the judge is away')", "return [None]"])
def test_r2_a_run_without_rewards_stops_with_a_sentence(outage: str, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (recipe.parent / "judged.py").write_text(
        "from pathlib import Path\n"
        "def judge(completions, **columns):\n"
        f"    if Path({str(run)!r}).exists():\n"
        f"        {outage}\n"
        "    return [1.0]\n"
    )
    settings = ["--run.directory", run, "--task.verifier", "judged:judge", "--verify.max_unscored", 2]
    done = train(recipe, *settings, "--runtime.mode", "sync")
    assert done.code == 1
    why = "the judge is away" if "raise" in outage else "gave no reward (None)"
    assert "none of the responses of 2 steps in a row could be scored (verify.max_unscored)" in done.stderr
    assert why in done.stderr
    with LedgerReader(run / "ledger.sqlite") as ledger:
        assert ledger.step == 2


def test_r1_each_function_is_a_metric_of_its_own(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = ["reward_functions:right", "reward_functions:length"]
    done = train(
        recipe, "--run.directory", run, "--run.steps", 2, "--runtime.mode", "sync",
        "--task.verifier", json.dumps(names), "--task.weights", "[1, 0.5]",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    with LedgerReader(run / "ledger.sqlite") as ledger:
        for step in ledger.steps():
            assert step["reward"] == pytest.approx(step["reward/right"] + 0.5 * step["reward/length"])
            assert step["reward/length"] > 0
        group = next(iter(ledger.records())).group
    assert group is not None
    assert group.reward_parts.keys() == {"right", "length"}
    assert "reward/length" in (run / "metrics.jsonl").read_text()


ASKED = [{"role": "user", "content": "1+0="}]


@pytest.mark.parametrize(
    ("functions", "row", "parts"),
    [
        (["chat_columns", "all_columns"], {"solution": "1", "weight": 3}, "(chat_columns 0, all_columns 1)"),
        (["verls"], {"data_source": "sums", "reward_model": {"ground_truth": 1}, "extra_info": {"index": 3}}, "1"),
    ],
)  # fmt: skip
def test_r1_and_r3_whole_rows_reach_functions_of_a_recipe(
    functions: list[str],
    row: dict[str, Any],
    parts: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "theirs.py").write_text(
        "def chat_columns(completions, prompts, solution, weight, **columns):\n"
        f"    assert prompts == [{ASKED}] and weight == [3] and not columns.keys() - {{'answer', 'completion_ids'}}\n"
        "    return [float(c[0]['content'] == s) for c, s in zip(completions, solution)]\n"
        "def all_columns(completions, **columns):\n"
        "    return [1.0]\n"
        "def verls(data_source, solution_str, ground_truth, extra_info):\n"
        "    assert (data_source, ground_truth, extra_info) == ('sums', 1, {'index': 3})\n"
        "    return 1\n"
    )
    (tmp_path / "data.jsonl").write_text((json.dumps({"prompt": ASKED, **row}) + "\n") * 10)
    verifier = json.dumps([f"theirs:{name}" for name in functions])
    assert main(["train", str(recipe), "--dry-run", "--task.verifier", verifier]) == 0
    assert parts in said(capsys)


@pytest.mark.slow
def test_what_stands_beside_the_recipe_is_found_from_elsewhere(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verifier, objective and task, by the command, workers, evaluator, a resume, `eval`, the inbox and the lab."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from driftproof.objectives import ASymPO\n"
        "from driftproof.tasks import Task\n"
        "from driftproof.types import Prompt\n"
        "def reward(text, answer):\n"
        "    return float(len(text) % 2)\n"
        "def task(count: int):\n"
        "    rows = [Prompt(index=i, text=f'{i}+0=', answer=str(i)) for i in range(count)]\n"
        "    return Task(name='mine', train=rows[2:], heldout=rows[:2], verifier='exact')\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class Objective(ASymPO):\n"
        "    name = 'mine'\n"
    )
    text = recipe.read_text()
    data = text[text.index("[task]") : text.index("[model]")]
    task = '[task]\nname = "mine:task"\ncount = 10\nverifier = ["mine:reward", "exact"]\n'
    recipe.write_text(text.replace(data, task).replace('"asympo"', '"mine:Objective"'))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = elsewhere / "run"
    short = ["--evaluation.prompts", 2, "--evaluation.samples", 1]
    done = train(recipe, "--run.directory", run, "--run.steps", 2, "--evaluation.every", 1, *short)
    assert done.code == 0, done.stderr
    sys.path.remove(str(tmp_path))
    done = train("--resume", run, "--run.steps", 3)
    assert done.code == 0, done.stderr
    with LedgerReader(run / "ledger.sqlite") as ledger:
        assert ledger.step == 3
        assert {"reward/reward", "reward/exact"} <= ledger.steps()[-1].keys()
    model = run / "snapshots" / "latest"
    assert main(["eval", str(model), str(recipe), *map(str, short)]) == 0
    with closing(open_inbox(run)) as inbox:
        assert inbox.task.name == "mine"
    lab = recipe.with_name("lab.toml")
    lab.write_text(
        '[lab]\nstaleness = [0]\nseeds = [0]\nobjectives = [{name = "mine:Objective"}]\n' + recipe.read_text()
    )
    assert main(["lab", str(lab), "--dry-run", *map(str, short)]) == 0, said(capsys)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere:task", "cannot be imported: ModuleNotFoundError"),
        ("own_tasks:fails", "failed at {file}:2: ZeroDivisionError"),
        ("own_tasks:no_task", "returned a list, not a driftproof.tasks.Task"),
        ("own_tasks:CONSTANT", "is a int, not a function"),
        ("own_tasks:needs", "needs the field 'count'"),
        ("own_task", "unknown task 'own_task'"),
    ],
)
def test_a_task_of_ones_own_that_is_none_is_refused(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own_tasks.py"
    file.write_text(
        "def fails():\n    1 / 0\ndef no_task():\n    return []\nCONSTANT = 3\ndef needs(count):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError) as refused:
        tasks.build(name)
    assert problem.format(file=file) in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"verifier": 3}, "verifier is 3; it must be a name, or a list of names"),
        ({"verifier": ["exact", 3]}, "it must be a name, or a list of names"),
        ({"weights": [1.0]}, "weights [1.0] without verifier"),
        ({"verifier": ["exact"], "weights": ["1"]}, "it must be a list of numbers"),
        ({"verifyer": "exact"}, "unknown field 'verifyer'; did you mean 'verifier'"),
    ],
)
def test_rewards_that_no_task_can_have_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskError) as refused:
        tasks.build("arithmetic", digits=1, **fields)
    assert problem in str(refused.value)
