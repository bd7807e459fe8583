"""Two processes share a step: run as `python -m tests.objectives.ranks RANK STORE RESULT`, rank 0 writes RESULT.

For every case two results: whole responses dealt to the ranks, and every response cut in two, each half on a rank.
Loss, gradient and metrics are added up over the ranks; a refusal is the message instead.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from driftproof.errors import ObjectiveError
from driftproof.objectives import Objective, Responses

from .formulas import CASES
from .steps import Step, a_step, gradient

Outcome = tuple[Tensor, Tensor, dict[str, Tensor]] | str


def added(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total


def shared(objective: Objective, batch: Responses, leaves: dict[str, Tensor]) -> Outcome:
    try:
        output = objective(batch)
    except ObjectiveError as error:
        return str(error)
    output.loss.backward()
    metrics = {name: added(value.double()) for name, value in output.metrics.items()}
    return added(output.loss.detach()), added(gradient(leaves)), metrics


def dealt(objective: Objective, step: Step, rank: int) -> Outcome:
    leaves = step.leaves()
    return shared(objective, step.part(leaves, range(rank, step.size, 2)), leaves)


def cut(objective: Objective, step: Step, rank: int) -> Outcome:
    """The first half of each response is on rank 0, the rest on rank 1; a single token is on rank 1."""
    leaves = step.leaves()
    first_N = torch.cat([torch.arange(length) < length // 2 for length in step.lengths_R.tolist()])
    held_N = first_N if rank == 0 else ~first_N
    return shared(objective, step.part(leaves, range(step.size), held_N, added), leaves)


def main(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    outcomes = {
        case.label: {"dealt": dealt(case.objective, a_step(), rank), "cut": cut(case.objective, a_step(), rank)}
        for case in CASES
    }
    if rank == 0:
        torch.save(outcomes, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
