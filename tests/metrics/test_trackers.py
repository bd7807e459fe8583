import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from driftproof.errors import ConfigError
from driftproof.metrics.settings import TrackingSettings
from driftproof.metrics.trackers import check_trackers, open_trackers


def read(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def track(directory: Path, history: list[dict[str, object]], *steps: int, tensorboard: bool = False) -> None:
    trackers = open_trackers(directory, history, TrackingSettings(tensorboard=tensorboard))
    for step in steps:
        for tracker in trackers:
            tracker.log(step, {"reward": step / 10})
    for tracker in trackers:
        tracker.close()


def test_each_step_is_there_once_also_after_a_resume(tmp_path: Path):
    track(tmp_path, [], 1, 2, 3, 4, 5)
    # The run goes on from step 3, trained with other groups; what was logged of 4 and 5 does not stand.
    track(tmp_path, [{"step": step, "reward": step / 10} for step in (1, 2, 3)], 4)
    assert read(tmp_path) == [{"step": step, "reward": step / 10} for step in (1, 2, 3, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path: Path):
    (tracker,) = open_trackers(tmp_path, [], TrackingSettings(tensorboard=False))
    tracker.log(1, {"reward": 0.5})
    assert read(tmp_path) == [{"step": 1, "reward": 0.5}]
    tracker.close()


def test_what_is_not_finite_is_null_so_that_every_reader_can_read_it(tmp_path: Path):
    history = [{"step": 1, "grad_norm": math.inf}]
    (tracker,) = open_trackers(tmp_path, history, TrackingSettings(tensorboard=False))
    tracker.log(2, {"grad_norm": math.nan, "groups": 3, "reward": -0.5})
    tracker.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()] == [
        {"step": 1, "grad_norm": None},
        {"step": 2, "grad_norm": None, "groups": 3, "reward": -0.5},
    ]


def test_tensorboard_has_the_first_and_every_tenth_step_and_forgets_what_was_undone(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(tmp_path, [], *range(1, 31), tensorboard=True)
    track(tmp_path, [{"step": step} for step in range(1, 16)], *range(16, 24), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 10, 20]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_tracker_without_its_package_is_refused_before_the_run(package: str):
    check_trackers(TrackingSettings())
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(
        ConfigError, match=rf"tracking.{package} needs its package: pip install 'driftproof\[{package}\]'"
    ):
        check_trackers(TrackingSettings(**{package: "project"}))
