"""The picture of a run, drawn from real ledgers and opened again."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.ledger.ledger import Ledger
from driftproof.report.figure import new_figure
from driftproof.report.picture import _from_zero, _Run, draw, merge, moving_mean

from .conftest import MakeLedger

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=60)


def _pixels(ledger: Ledger, path: Path) -> np.ndarray:
    from matplotlib.image import imread

    draw(ledger, path)
    return np.asarray(imread(path))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [0, 1, 300])
def test_any_number_of_steps(make_ledger: MakeLedger, tmp_path: Path, steps: int) -> None:
    pixels = _pixels(make_ledger(steps), tmp_path / "run.png")
    height, width, _ = pixels.shape
    assert width > height > 500
    assert (pixels[..., :3].min(axis=2) < 0.9).mean() > 0.005


@pytest.mark.parametrize(("steps", "window"), [(0, 1), (1, 1), (2, 1), (9, 3), (60, 20), (90, 20)])
def test_a_short_run_shows_its_steps_and_not_one_mean_of_all(make_ledger: MakeLedger, steps: int, window: int) -> None:
    assert _Run(make_ledger(steps), Path()).window == window


def test_what_begins_at_zero_is_seen_whole_be_it_one_point() -> None:
    axes = new_figure(4, "", title_size=10, dpi=50, pad=0.1).add_subplot()
    axes.plot([1], [300.0])
    axes.plot([1], [math.nan])
    _from_zero(axes)
    assert axes.get_ylim() == pytest.approx((0, 324))


@pytest.mark.filterwarnings("error")
def test_very_many_steps(make_ledger: MakeLedger, tmp_path: Path) -> None:
    ledger = make_ledger(0, planned=10_000)
    ledger.finish_step(10_000, {"reward": 0.5})
    for step in range(1, 4_000):
        ledger.finish_step(step, {"reward": 0.5, "grad_norm": math.inf if step % 7 == 0 else 1.0})
    draw(ledger, tmp_path / "run.png")


@pytest.mark.filterwarnings("error")
def test_whatever_is_missing(make_ledger: MakeLedger, tmp_path: Path) -> None:
    ledger = make_ledger(30, negatives=False, entropy=False, evaluated=False, recipe=False)
    draw(ledger, tmp_path / "run.png")


def test_likelihoods_of_recorded_traces_are_drawn(make_ledger: MakeLedger, tmp_path: Path) -> None:
    ledger = make_ledger(30, evaluated=False)
    without = _pixels(ledger, tmp_path / "without.png")
    ledger.record_evaluation("heldout_nll", 0, {"health/positive_nll": 1.0, "health/negative_nll": 1.1})
    assert not np.array_equal(_pixels(ledger, tmp_path / "with.png"), without)


def test_global_state_of_matplotlib_stays(make_ledger: MakeLedger, tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(make_ledger(2), tmp_path / "run.png")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@given(VALUES, st.integers(1, 30))
def test_moving_mean_is_the_mean_around_each_value(values: list[float], window: int) -> None:
    means = moving_mean(np.array(values), window)
    assert len(means) == len(values)
    for position, mean in enumerate(means):
        around = values[max(position - window // 2, 0) : position + (window + 1) // 2]
        known = [value for value in around if math.isfinite(value)]
        expected = sum(known) / len(known) if known else math.nan
        assert mean == pytest.approx(expected, rel=1e-6, abs=1e-3, nan_ok=True)


@given(VALUES, st.integers(1, 30))
def test_merged_values_keep_mean_and_largest(values: list[float], points: int) -> None:
    array = np.array(values, dtype=np.float64)
    merged = merge(array, points)
    assert len(merged) <= points
    if len(values) <= points:
        np.testing.assert_allclose(merged, array)
    largest = merge(array, points, largest=True)
    assert len(largest) == len(merged)
    if np.isfinite(array).any():
        assert np.nanmax(largest) == np.nanmax(array)
        assert np.nanmin(array) - 1e-6 <= np.nanmin(merged)
        assert np.nanmax(merged) <= np.nanmax(array) + 1e-6
