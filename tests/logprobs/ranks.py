"""A head in three uneven shards over three processes: run as `python -m tests.logprobs.ranks RANK STORE RESULT`."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from driftproof.logprobs import VocabShard

from .problems import Problem, differentiated, finished, problem

VOCABULARY = 23
BOUNDS = (0, 9, 21, VOCABULARY)
RANKS = len(BOUNDS) - 1
PROBLEMS: dict[str, Problem] = {
    "plain": problem((4, 0, 7, 2), vocabulary=VOCABULARY, biased=False, entropy=False),
    "all terms": problem((4, 0, 7, 2), vocabulary=VOCABULARY, softcap=2.0),
    "impossible tokens": problem((4, 0, 7, 2), vocabulary=VOCABULARY, impossible=True, seed=3),
    "frozen": problem((4, 0, 7, 2), vocabulary=VOCABULARY, frozen=True),
    "no tokens": problem((), vocabulary=VOCABULARY),
}
BUDGETS = (1, 5 * 12 * 8, 10**6)

Results = dict[tuple[str, str, int], dict[str, Tensor | None]]


def results(rank: int) -> Results:
    """This rank's results of every problem, way and budget."""
    shard = VocabShard(first=BOUNDS[rank], group=dist.group.WORLD)
    columns = slice(BOUNDS[rank], BOUNDS[rank + 1])
    return {
        (name, way.__name__, budget): way(of, of.head(columns=columns, shard=shard), budget_bytes=budget)
        for name, of in PROBLEMS.items()
        for way in (differentiated, finished)
        for budget in BUDGETS
    }


def main(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.save(results(rank), f"{result}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
