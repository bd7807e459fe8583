"""Which prompt is the n-th: a seeded permutation, drawn anew for every epoch, so that order survives any restart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class PromptOrder:
    """The order in which the prompts of a task are dispatched."""

    def __init__(self, seed: int, prompts: int) -> None:
        self._seed = seed
        self._prompts = prompts
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def prompt_of(self, dispatch: int) -> int:
        """The prompt of the n-th dispatch: a position in the permutation of epoch n // prompts."""
        epoch, position = divmod(dispatch, self._prompts)
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._prompts)
            self._epoch = (epoch, order)
        return int(self._epoch[1][position])
