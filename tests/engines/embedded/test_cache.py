import numpy as np
import torch

from driftproof.engines.embedded.cache import SlotCache

from ..tiny import nbytes


def states(rows: int, queries: int, value: float) -> torch.Tensor:
    return torch.full((rows, 2, queries, 3), value, dtype=torch.float32)


def test_grows_by_doubling_up_to_the_limit_and_keeps_what_was_written():
    cache = SlotCache(layers=1, rows=4, limit=100)
    assert nbytes(cache) == 0
    sizes = []
    for stop in range(1, 101):
        cache.write_span(0, 2, stop - 1, stop)
        keys, values = cache.update(states(2, 1, stop), states(2, 1, -stop), 0)
        assert keys.shape == values.shape == (2, 2, stop, 3)
        sizes.append(nbytes(cache))
    assert keys[1, 0, :, 0].tolist() == list(range(1, 101))
    assert values[0, 1, :, 2].tolist() == list(range(-1, -101, -1))
    position = 2 * 4 * 2 * 3 * 4  # keys and values, rows, heads, dimensions, bytes
    assert sorted(set(sizes)) == [32 * position, 64 * position, 100 * position]


def test_single_tokens_go_to_each_rows_own_position_and_nothing_is_copied():
    cache = SlotCache(layers=2, rows=3, limit=8)
    cache.write_next(torch.tensor([0, 4]), 5)
    keys, _ = cache.update(states(2, 1, 7), states(2, 1, 9), 1)
    assert keys[:, 0, :, 0].tolist() == [[7, 0, 0, 0, 0], [0, 0, 0, 0, 7]]
    assert keys.data_ptr() == cache.layers[1].keys.data_ptr()
    assert not cache.layers[0].is_initialized


def test_rows_are_copied_as_if_all_at_once():
    cache = SlotCache(layers=1, rows=4, limit=8)
    cache.copy_rows(np.array([], np.int64), np.array([], np.int64), 4)
    cache.write_span(0, 4, 0, 2)
    cache.update(torch.arange(4.0)[:, None, None, None].expand(4, 2, 2, 3), states(4, 2, 1), 0)
    cache.copy_rows(np.array([0, 0, 1]), np.array([1, 2, 3]), 1)
    assert cache.layers[0].keys[:, 0, :2, 0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 3]]
