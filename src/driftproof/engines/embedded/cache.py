"""Keys and values of the responses under way, in rows that are written in place.

Guarantees: the tensors grow with the longest row, by doubling, and never beyond `limit` positions; what the model
reads is a view of the rows and positions in use, never a copy; unwritten positions are zero, so that a mask hides them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_CAPACITY = 32


@dataclass(slots=True)
class _Window:
    """Rows [first, last) and positions that the next forward pass writes and reads; shared by all layers."""

    rows: int
    """Rows held by the tensors."""
    limit: int
    """Positions a row may have."""
    first: int = 0
    last: int = 0
    start: int = 0
    stop: int = 0
    """Positions [0, stop) are read; all rows write [start, stop), unless there are `positions`."""
    positions: Tensor | None = None
    """int64 [last - first]: where each row writes its one new token."""
    row_index: Tensor | None = None
    """int64 [last - first]: first, first + 1, ...; beside `positions`."""


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache whose batch rows are slots that come and go."""

    def __init__(self, *, layers: int, rows: int, limit: int) -> None:
        self._window = _Window(rows=rows, limit=limit)
        super().__init__(layers=[_SlotLayer(self._window) for _ in range(layers)])

    def write_span(self, first: int, last: int, start: int, stop: int) -> None:
        """The next forward pass writes positions [start, stop) of rows [first, last) and reads [0, stop)."""
        window = self._window
        window.first, window.last, window.start, window.stop = first, last, start, stop
        window.positions = window.row_index = None

    def write_next(self, positions: Tensor, longest: int) -> None:
        """The next forward pass writes one token per row, at `positions` (int64 [B]) of rows [0, B), and reads
        [0, longest)."""
        self.write_span(0, len(positions), longest - 1, longest)
        self._window.positions = positions
        self._window.row_index = torch.arange(len(positions), device=positions.device)

    def get_query_offset(self, layer_idx: int = 0) -> int | Tensor:
        """The position at which the next forward pass begins: one for all rows, or int64 [B]."""
        window = self._window
        return window.start if window.positions is None else window.positions

    def copy_rows(self, source: NDArray[np.int64], target: NDArray[np.int64], length: int) -> None:
        """Copy the first `length` positions of rows `source` to rows `target`, as if all at once."""
        for states in self._states if len(source) and length else ():
            rows = torch.as_tensor(source, device=states.device)
            states[torch.as_tensor(target, device=states.device), :, :length] = states[rows, :, :length]

    @property
    def _states(self) -> list[Tensor]:
        """Keys and values of all layers that the model writes."""
        return [states for layer in self.layers if layer.is_initialized for states in (layer.keys, layer.values)]


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys [rows, KV, capacity, D] and values [rows, KV, capacity, Dv] of one layer."""

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_zeros((self._window.rows, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((self._window.rows, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states [B, KV, Q, D]; returns views [B, KV, stop, D] of all that the rows hold."""
        window = self._window
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.shape[2] < window.stop:
            enough = max(_FIRST_CAPACITY, 1 << (window.stop - 1).bit_length(), 2 * self.keys.shape[2])
            capacity = min(window.limit, enough)
            self.keys, self.values = _grow(self.keys, capacity), _grow(self.values, capacity)
        if window.positions is None:
            self.keys[window.first : window.last, :, window.start : window.stop] = key_states
            self.values[window.first : window.last, :, window.start : window.stop] = value_states
        else:
            self.keys[window.row_index, :, window.positions] = key_states[:, :, 0]
            self.values[window.row_index, :, window.positions] = value_states[:, :, 0]
        rows = slice(window.first, window.last)
        return self.keys[rows, :, : window.stop], self.values[rows, :, : window.stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._window.stop, 0

    def get_seq_length(self) -> int:
        return self._window.start

    def get_max_length(self) -> int:
        return self._window.limit


def _grow(states: Tensor, capacity: int) -> Tensor:
    larger = states.new_zeros((*states.shape[:2], capacity, states.shape[3]))
    larger[:, :, : states.shape[2]] = states
    return larger
