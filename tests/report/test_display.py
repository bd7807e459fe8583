"""The display of a running training, over ledgers that grow."""

import io
import os
import re
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import STOPPING, Counters
from driftproof.report import display
from driftproof.report.display import LiveDisplay, LogLines, log_line, open_display, render, sparkline
from driftproof.report.view import View

from .conftest import MakeLedger
from .ledgers import grow, step_metrics


def _terminal(width: int = 110) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm-256color"})


def _file() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def _output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _shown(view: View, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(view, width))
    return _output(console)


def test_the_view_of_a_running_training(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(30, planned=300)
    view = View.of(ledger)
    last = ledger.steps(after=10)
    assert view.step == 30
    assert view.accuracy_before == 0.34
    assert view.mean("reward") == pytest.approx(sum(step["reward"] for step in last) / 20)
    assert view.mean("not recorded") is None
    assert view.age_max == 4
    assert view.trained_seconds == pytest.approx(3.0)
    assert view.seconds_left == pytest.approx(27.0)
    assert view.overlap.learner_busy == pytest.approx(0.8)
    assert view.overlap.rollout_busy == pytest.approx(1.0)
    assert view.overlap.rollout_tokens / view.overlap.wall_seconds == pytest.approx(240)
    assert view.activity == "learner waits for rollouts"


def test_looking_often_is_looking_once(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(0, planned=300)
    view = View.of(ledger)
    for steps in (1, 30, 0, 7):
        grow(ledger, steps)
        view = View.of(ledger, view)
    whole = View.of(ledger)
    assert view.trained_seconds == pytest.approx(whole.trained_seconds)
    assert (view.recent, view.rewards, view.status) == (whole.recent, whole.rewards, whole.status)


def test_only_new_steps_are_read(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make_ledger(30, planned=300)
    view = View.of(ledger)
    grow(ledger, 2)
    read: list[int] = []
    steps = Ledger.steps

    def counting(self: Ledger, after: int = 0) -> list[dict[str, object]]:
        found = steps(self, after)
        read.append(len(found))
        return found

    monkeypatch.setattr(Ledger, "steps", counting)
    View.of(ledger, view)
    assert read == [2]


def _starting(ledger: Ledger) -> None:
    """Nothing has happened."""


def _first_groups(ledger: Ledger) -> None:
    ledger.lease("worker-0", 2, 60)


def _stopping(ledger: Ledger) -> None:
    grow(ledger, 2)
    ledger.set_state(STOPPING)


def _last_groups(ledger: Ledger) -> None:
    grow(ledger, 17)


def _evaluating(ledger: Ledger) -> None:
    grow(ledger, 20)


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (_starting, "starting"),
        (_first_groups, "learner waits for the first groups"),
        (_stopping, "stopping"),
        (_last_groups, "rollouts are done"),
        (_evaluating, "all steps are done"),
    ],
)
def test_what_the_run_is_doing(make_ledger: MakeLedger, happens: Callable[[Ledger], None], words: str) -> None:
    ledger = make_ledger(0, planned=20)
    happens(ledger)
    assert View.of(ledger).activity.startswith(words)


def test_the_live_display_shows_every_figure(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(40, planned=300)
    ledger.record_event("verification failed", "prompt 3: time limit")
    view = View.of(ledger)
    for width in (50, 80, 110):
        shown = _shown(view, width)
        assert max(map(len, shown.splitlines())) <= width
        for words in ("40/300 steps", "reward", "0.340", "mean 3.4, max 4", "240 tokens/s, busy 100%", "busy 80%"):
            assert words in shown
        for words in (
            "learner waits for rollouts",
            f"{view.status.ready} ready, 0 leased",
            "1 x verification failed",
            "left",
        ):
            assert words in shown


def test_figures_that_are_missing(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(2, planned=4, negatives=False, entropy=False, evaluated=False)
    view = View.of(ledger)
    assert re.search(r"NLL of negatives +-", _shown(view, 110))
    assert "NLL of negatives - | scale imbalance - | entropy -" in log_line(view)
    assert "accuracy before -" in log_line(view)


def test_a_terminal_lives_before_there_is_a_ledger() -> None:
    console, threads = _terminal(80), threading.enumerate()
    live = open_display(console)
    live.starting("quick\x1b[2Jstart", "imports its libraries")
    assert r"quick\x1b[2Jstart" in _output(console)
    live.message("warning: mind the gap")
    live.starting("runs/a", "checks the recipe")
    live.close()
    shown = _output(console)
    assert "imports its libraries" in shown
    assert "warning: mind the gap" in shown
    assert re.search(r"checks the recipe \d:\d\d", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")
    for thread in threading.enumerate():
        if thread not in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_lines_live_before_there_is_a_ledger() -> None:
    console = _file()
    lines = open_display(console)
    lines.starting("runs/a", "imports its libraries")
    assert _output(console) == "runs/a imports its libraries\n"


DOING = {"learner": ("loads its model", 4.0), "worker-0": ("waits for the first snapshot", 63.0)}


def test_what_is_waited_for_while_models_load(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(0, planned=20, evaluated=False)
    view = View.of(ledger, doing=DOING)
    shown = _shown(view, 80)
    for words in ("starting", "learner loads its model (0:04)", "worker-0 waits for the first snapshot (1:03)"):
        assert words in shown
        assert words in log_line(view)
    # Written ahead while the learner still evaluates: nobody waits for groups.
    _first_groups(ledger)
    assert View.of(ledger, doing={"learner": ("evaluates held-out prompts", 1.0)}).activity == "starting"
    waiting = {"learner": ("waits for groups", 9.0), **{f"worker-{i}": ("waits for its engine", 9.0) for i in range(9)}}
    view = View.of(ledger, doing=waiting)
    assert view.activity == "learner waits for the first groups"
    assert "worker-2 waits for its engine (0:09)" in _shown(view, 80)
    assert "and 6 more" in _shown(view, 80)


def test_a_long_doing_is_told_among_figures(make_ledger: MakeLedger) -> None:
    doing = {"learner": ("trains a step", 34.0), "worker-0": ("waits for its engine", 0.1)}
    shown = _shown(View.of(make_ledger(3, planned=20), doing=doing), 80)
    assert "learner trains a step (0:34)" in shown
    assert "worker-0" not in shown


def test_labels_say_what_a_figure_is_of(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(3, planned=30)
    assert "mean of the last 3 steps" in _shown(View.of(ledger), 80)
    assert "of the first step" in _shown(View.of(make_ledger(1, planned=30)), 80)
    grow(ledger, 20)
    assert "mean of the last 20 steps" in _shown(View.of(ledger), 80)
    assert "mean of 20: reward" in log_line(View.of(ledger))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ('[engine]\nname = "openai"\n', "fixed: the servers keep theirs"),
        ("[rollouts]\nrecorded_share = 1\n", "none: responses are recorded"),
        ('[engine]\nname = "vllm"\n', "step 2, newest step 3"),
    ],
)
def test_weights_that_rollouts_are_written_with(make_ledger: MakeLedger, recipe: str, words: str) -> None:
    ledger = make_ledger(3, planned=30)
    (ledger.path.parent / "config.toml").write_text(recipe)
    ledger.published(3)
    ledger.report_worker("worker-0", Counters(snapshot=2, engine={"tokens_under_way": 1200.0}))
    ledger.report_worker("worker-1", Counters(snapshot=3, engine={"tokens_under_way": 34.0}))
    ledger.report_worker("stranger", Counters())
    view = View.of(ledger)
    assert view.now["rollout weights"] == words
    assert view.now["under way"] == "1,234 tokens"


def test_a_silent_run_is_told_to_be_alive(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, console = make_ledger(2, planned=300), _file()
    lines = LogLines(console, every_seconds=0)
    lines.update(ledger)
    lines.update(ledger)
    assert len(_output(console).splitlines()) == 1
    monkeypatch.setattr(display, "SILENT_SECONDS", 0.0)
    lines.update(ledger)
    assert len(_output(console).splitlines()) == 2


def test_a_terminal_is_drawn_over(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "REFRESH_SECONDS", 0.0)
    ledger, console = make_ledger(10, planned=300), _terminal()
    live = open_display(console)
    assert isinstance(live, LiveDisplay)
    live.message("before [bold]it\x1b[2J starts")
    threads = threading.active_count()
    live.update(ledger)
    ledger.record_event("verification failed", "[red]\x1b[2J")
    grow(ledger, 5)
    live.update(ledger)
    live.message("two\nlines")
    assert threading.active_count() == threads
    live.close()
    output = _output(console)
    assert "before [bold]it\\x1b[2J starts" in output
    assert "10/300" in output
    assert "15/300" in output
    assert "\x1b[2J" not in output
    assert "two\nlines" in output
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1


def test_a_display_is_drawn_when_due_and_at_the_end(make_ledger: MakeLedger) -> None:
    ledger, console = make_ledger(1, planned=300), _terminal()
    live = LiveDisplay(console)
    for _ in range(20):
        grow(ledger, 1)
        live.update(ledger)
    assert len(set(re.findall(r"(\d+)/300", _output(console)))) < 10
    ledger.set_state(STOPPING)
    live.update(ledger)
    live.close()
    assert "21/300" in _output(console)


def test_a_display_that_was_never_updated_can_be_closed() -> None:
    console = _terminal()
    open_display(console).close()
    assert "\x1b[?25l" not in _output(console)


def test_lines_where_there_is_no_terminal(make_ledger: MakeLedger) -> None:
    ledger, console = make_ledger(0, planned=300), _file()
    lines = open_display(console)
    assert isinstance(lines, LogLines)
    lines.update(ledger)
    grow(ledger, 3)
    # Not due yet.
    lines.update(ledger)
    ledger.set_state(STOPPING)
    lines.update(ledger)
    lines.update(ledger)
    lines.close()
    first, second = _output(console).splitlines()
    assert first == "step 0/300 | starting: models are loaded, held-out prompts are evaluated"
    assert second.startswith("step 3/300, 0:30 left | mean of 3: reward 0.3")
    assert "| groups 4 ready, 0 leased | rollout weights step 0 | under way - | stopping: the learner writes" in second


def test_lines_say_events_once_and_have_no_control_characters(make_ledger: MakeLedger) -> None:
    ledger, console = make_ledger(2, planned=300), _file()
    lines = LogLines(console, every_seconds=0)
    ledger.record_event("verification failed", "[red]\x1b[31m\nstep 300/300, forged")
    lines.update(ledger)
    lines.update(ledger)
    ledger.record_event("verification failed", "again")
    lines.update(ledger)
    lines.message("one\x1b[2J\ntwo")
    *written, one, two = _output(console).splitlines()
    event, step, later_event = written
    assert event == r"verification failed (1): [red]\x1b[31m\nstep 300/300, forged"
    assert step.startswith("step 2/300")
    assert later_event == "verification failed (2): again"
    assert (one, two) == ("one\\x1b[2J", "two")
    assert all(line.isprintable() for line in written)


def test_lines_fit_the_encoding_of_their_file(make_ledger: MakeLedger) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), force_terminal=False)
    lines = open_display(console)
    lines.message("naïve → …")
    lines.update(make_ledger(2, planned=4))
    console.file.flush()
    assert raw.getvalue().splitlines()[0] == rb"na\xefve \u2192 \u2026"


def test_a_terminal_that_cannot_draw_gets_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(open_display(dumb), LogLines)


def test_a_real_terminal_gets_the_live_display() -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as file:
        assert isinstance(open_display(Console(file=file, _environ={"TERM": "xterm"})), LiveDisplay)
    os.close(master)


def test_sparkline_rises_with_the_values() -> None:
    assert sparkline([], 4) == ""
    assert sparkline([0.0, 0.0], 4) == "▁▁"
    assert sparkline([0.0, 0.5, 1.0, 1.0], 4) == "▁▅██"
    assert sparkline([float(step) for step in range(1000)], 5) == "▂▃▅▆█"
    assert len(sparkline([step_metrics(step)["reward"] for step in range(1, 100)], 24)) <= 24
