"""Which prompt is the n-th: seeded permutations, drawn anew for every epoch, so that order survives any restart.

Guarantees: live prompts are 0 to prompts - 1, recorded ones stand behind them; of any n first dispatches
floor(n * recorded_share) are recorded; either kind has all its prompts once before one of them comes again. Prompts of
one kind alone, live or recorded, come in the same order.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


class PromptOrder:
    """The order in which the prompts of a run are dispatched.

    The share of recorded ones, from 0 to 1, is as exact as it is written: 0.29 is 29 of 100.
    """

    def __init__(self, seed: int, prompts: int, recorded_prompts: int = 0, recorded_share: float = 0.0) -> None:
        self._recorded_of, self._among = Fraction(str(recorded_share)).as_integer_ratio()
        self._prompts = prompts
        self._live = _Permutations(prompts, seed)
        alone = self._recorded_of == self._among
        self._recorded = _Permutations(recorded_prompts, seed, *(() if alone else (1,)))

    def prompt_of(self, dispatch: int) -> int:
        """The prompt of the n-th dispatch: the next recorded one where it is their turn, else the next live one."""
        recorded = self._recorded_before(dispatch)
        if self._recorded_before(dispatch + 1) > recorded:
            return self._prompts + self._recorded.nth(recorded)
        return self._live.nth(dispatch - recorded)

    def _recorded_before(self, dispatch: int) -> int:
        return dispatch * self._recorded_of // self._among


class _Permutations:
    """One permutation of `count` prompts behind the other, each of its own epoch."""

    def __init__(self, count: int, seed: int, *kind: int) -> None:
        self._count = count
        self._seed = seed
        self._kind = kind
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def nth(self, turn: int) -> int:
        epoch, position = divmod(turn, self._count)
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, epoch, *self._kind]).permutation(self._count)
            self._epoch = (epoch, order)
        return int(self._epoch[1][position])
