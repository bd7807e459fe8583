"""What is held and computed: no tensor of all logits, no product for a frozen head, and logits once where they fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .problems import differentiated, finished, problem

TOKENS, VOCABULARY, HIDDEN = 200, 500, 4
LENGTHS = (90, 5, 5, 60, 40)
LARGE = 50
"""Tokens of a block; one response is longer."""


class Shapes(TorchDispatchMode):
    """The shape of every tensor that is made; views of the inputs are not."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()
        self.products: list[int] = []
        """Tokens of each product that gave logits."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        new = [tensor for tensor in _tensors(result) if tensor.untyped_storage().data_ptr() not in known]
        self.made.update(tuple(tensor.shape) for tensor in new)
        if function in (torch.ops.aten.mm.out, torch.ops.aten.addmm.out) and result.shape[1] == VOCABULARY:
            self.products.append(len(result))
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def observed(
    way: Any,
    *,
    variant: str,
    frozen: bool = False,
    dtype: torch.dtype = torch.float64,
    lengths: tuple[int, ...] = LENGTHS,
) -> Shapes:
    of = problem(lengths, vocabulary=VOCABULARY, hidden=HIDDEN, softcap=3.0, frozen=frozen).to(dtype)
    head = of.head()
    with Shapes() as mode:
        way(of, head, variant=variant, budget_bytes=LARGE * VOCABULARY * dtype.itemsize)
    return mode


def most_logits(made: set[tuple[int, ...]]) -> int:
    """Tokens in the largest tensor as wide as the vocabulary."""
    return max(shape[0] for shape in made if len(shape) == 2 and shape[1] == VOCABULARY)


@pytest.mark.parametrize("way", [differentiated, finished])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_more_logits_are_held_than_the_budget_allows(way: Any, dtype: torch.dtype):
    assert most_logits(observed(way, variant="reference").made) == TOKENS
    assert most_logits(observed(way, variant="chunked", dtype=dtype).made) == LARGE


@pytest.mark.parametrize("way", [differentiated, finished])
@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_a_frozen_head_has_no_product_for_its_gradient(way: Any, variant: str):
    of = {frozen: observed(way, variant=variant, frozen=frozen).made for frozen in (False, True)}
    assert (VOCABULARY, HIDDEN) in of[False]
    assert (VOCABULARY, HIDDEN) not in of[True]


@pytest.mark.parametrize(
    ("way", "lengths", "products"),
    [
        (differentiated, (20, 30, 40), [50, 40, 40, 50]),
        (finished, (20, 30, 40), [50, 40]),
        # Of a response of three blocks, the last is still there when the gradients are computed.
        (finished, (120, 10), [50, 50, 20, 50, 50, 10]),
    ],
)
def test_logits_are_computed_again_only_where_they_do_not_fit(way: Any, lengths: tuple[int, ...], products: list[int]):
    assert observed(way, variant="chunked", lengths=lengths).products == products
