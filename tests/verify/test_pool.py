"""The pool's promises, kept by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.errors import VerifierError
from driftproof.types import Verdict
from driftproof.verify import VerifierPool, processes
from driftproof.verify.exact import exact
from tests.verify.items import item

HERE = Path(__file__).parent
BEHAVE = "foreign_verifiers:behave"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture(scope="module")
def exact_pool() -> Iterator[VerifierPool]:
    with VerifierPool("driftproof.verify.exact:exact", processes=2, timeout_seconds=30) as verifier:
        yield verifier


any_text = st.text(st.characters(exclude_categories=()), max_size=30)


@given(st.lists(st.tuples(any_text, any_text) | any_text.map(lambda text: (text, text)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_texts_come_back_in_order(exact_pool: VerifierPool, items: list[tuple[str, str]]) -> None:
    assert exact_pool.score([item(*pair) for pair in items]) == [
        Verdict(reward=exact(text, answer)) for text, answer in items
    ]


def test_rewards_are_exact_floats() -> None:
    rewards = [0.1, -1e-300, 1.7976931348623157e308, 3.0]
    with VerifierPool(BEHAVE, processes=1, timeout_seconds=30) as verifier:
        assert [verdict.reward for verdict in verifier.score([item(repr(reward)) for reward in rewards])] == rewards
        assert verifier.score([item("true")]) == [Verdict(reward=1.0)]
        assert verifier.score([]) == []


def test_bad_answers_are_marked_and_the_others_are_not_affected() -> None:
    bad = {
        "hang": "verifier exceeded 1.5 s",
        "raise": 'verifier crashed: KeyError: "a verifier\'s own mistake"',
        "exit": "verifier crashed: its process exited with code 3",
        "sys.exit": "verifier crashed: SystemExit: 4",
        "killed": "verifier crashed: its process was ended by signal 11 (Segmentation fault)",
        "nan": "verifier returned nan; a reward must be a finite number",
        "inf": "verifier returned -inf; a reward must be a finite number",
        "huge": "verifier crashed: OverflowError: int too large to convert to float",
        "text": "verifier returned '1.0'; a reward must be a finite number",
    }
    texts = [text for number, name in enumerate(bad) for text in (str(number), name, str(-number))]
    with VerifierPool(BEHAVE, processes=2, timeout_seconds=1.5) as verifier:
        for repetition in (1, 2):
            verdicts = verifier.score([item(text) for text in texts])
            for text, verdict in zip(texts, verdicts, strict=True):
                expected = Verdict(reward=0.0, problem=bad[text]) if text in bad else Verdict(reward=float(text))
                assert verdict == expected
            assert verifier.failures == {
                "timeouts": repetition,
                "crashes": 7 * repetition,  # who dies is asked once more
                "invalid_rewards": 3 * repetition,
            }


def test_long_texts_behind_a_hanging_verifier_do_not_block_the_pool() -> None:
    long = "x" * 1_000_000
    with VerifierPool(BEHAVE, processes=1, timeout_seconds=1.5) as verifier:
        verdicts = verifier.score([item("hang"), item("long", long), item("long", long), item("hang", long), item("2")])
    assert [verdict.reward for verdict in verdicts] == [0.0, 1e6, 1e6, 0.0, 2.0]


def test_items_are_verified_at_once(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with VerifierPool("foreign_verifiers:meet", processes=2, timeout_seconds=30) as verifier:
        assert [verdict.reward for verdict in verifier.score([item(a, b), item(b, a)])] == [1.0, 1.0]


def test_starting_does_not_count_against_the_time_limit() -> None:
    with VerifierPool("slow_import:verify", processes=1, timeout_seconds=0.8) as verifier:
        verdicts = verifier.score([item("fine"), item("hang"), item("fine"), item("fine")])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0, 1.0]


def test_a_process_that_dies_while_idle_is_replaced_and_no_item_is_blamed() -> None:
    with VerifierPool(BEHAVE, processes=1, timeout_seconds=30) as verifier:
        pid = int(verifier.score([item("pid")])[0].reward or 0)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))
        assert verifier.score([item("1"), item("2")]) == [Verdict(reward=1.0), Verdict(reward=2.0)]
        assert verifier.failures["crashes"] == 1


def test_a_process_that_is_killed_while_it_works_is_replaced_and_its_item_asked_again(tmp_path: Path) -> None:
    """Whoever kills it, the response is not to blame."""
    with VerifierPool("foreign_verifiers:dies_once", processes=1, timeout_seconds=30) as verifier:
        assert verifier.score([item(str(tmp_path / "died")), item("")]) == [Verdict(reward=1.0), Verdict(reward=1.0)]
        assert verifier.failures["crashes"] == 1


def test_what_a_function_writes_to_the_pool_itself_ends_its_process_and_nothing_else() -> None:
    with VerifierPool("foreign_verifiers:interferes", processes=1, timeout_seconds=30) as verifier:
        for junk in ("long", "no json", "pickle", "not a number", "a list", "no cause"):
            verdicts = verifier.score([item("1"), item(junk), item("1")])
            assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0], junk
            assert "verifier crashed: its process" in verdicts[1].problem


def test_processes_ignore_ctrl_c_have_no_input_and_one_thread() -> None:
    with VerifierPool(BEHAVE, processes=1, timeout_seconds=30) as verifier:
        assert verifier.score([item("interrupt"), item("input")]) == [Verdict(reward=1.0), Verdict(reward=0.0)]
        if sys.platform == "linux":
            assert verifier.score([item("threads")]) == [Verdict(reward=1.0)]


def test_an_interrupted_call_closes_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    verifier = VerifierPool(BEHAVE, processes=1, timeout_seconds=30)
    pid = int(verifier.score([item("pid")])[0].reward or 0)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            verifier.score([item("hang")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not alive(pid)
    with pytest.raises(VerifierError, match="is closed"):
        verifier.score([item("1")])
    verifier.close()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module:verify", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("foreign_verifiers:no_such_function", "has no attribute 'no_such_function'"),
        ("foreign_verifiers:CONSTANT", "CONSTANT is a int, not a function"),
        (":verify", "ValueError: Empty module name"),
        ("foreign_verifiers:", "valid: 'package.module:function'"),
    ],
)
def test_a_verifier_that_is_not_there_is_refused(name: str, problem: str) -> None:
    with pytest.raises(VerifierError, match="cannot be imported") as refused:
        VerifierPool(name, processes=1, timeout_seconds=5)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("raise", "RuntimeError: no licence found"),
        ("exit", "its process exited with code 7"),
        ("hang", "its process did not finish within 1 s"),
    ],
)
def test_a_verifier_that_fails_while_it_is_imported_is_refused(
    how: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_IMPORT", how)
    if how == "hang":
        monkeypatch.setattr(processes, "START_SECONDS", 1.0)
    with pytest.raises(VerifierError) as refused:
        VerifierPool("bad_imports:verify", processes=2, timeout_seconds=5)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"processes": 0, "timeout_seconds": 1.0},
        {"processes": 1, "timeout_seconds": 0.0},
        {"processes": 1, "timeout_seconds": float("nan")},
        {"processes": 1, "timeout_seconds": float("inf")},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(VerifierError, match=r"at least 1|positive"):
        VerifierPool(BEHAVE, **arguments)  # type: ignore[arg-type]


PARENT = """
import sys
from driftproof.verify import Item, VerifierPool
kinds = sys.argv[2:]
with VerifierPool("foreign_verifiers:leave_pid", processes=len(kinds), timeout_seconds=1000) as verifier:
    verifier.score([Item(response=f"{sys.argv[1]}/{kind}", answer=kind, prompt="") for kind in kinds])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hanging verifier outlives a killed parent")
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    kinds = ["idle", "loop", "sleep", "regular expression"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), *kinds], env=environment)
    try:
        wait_until(lambda: all((tmp_path / kind).exists() for kind in kinds))
        pids = [int((tmp_path / kind).read_text()) for kind in kinds]
        assert all(alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_what_a_hanging_verifier_has_started_is_killed_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    options: dict[str, Any] = {"processes": 1, "timeout_seconds": 2, "on_timeout": "none"}
    with VerifierPool("foreign_verifiers:leave_pid", **options) as verifier:
        assert verifier.score([item(str(child), "grandchild")])[0].problem == "verifier exceeded 2 s"
    assert not alive(int(child.read_text()))
    wait_until(lambda: not alive(int((tmp_path / "child2").read_text())))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
