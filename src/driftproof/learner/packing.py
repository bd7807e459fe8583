"""Groups into micro-batches: nothing computed twice, nothing split, nothing lost.

A row holds one prompt followed by as many of its group's responses as fit into `row_tokens`; each response attends to
the prompt and to itself, at the positions it would have alone. So a prompt is encoded once for all its responses, and
the loss is the same as with one response a row. Every response is in exactly one micro-batch, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftproof.types import Group, Tokens

MOST_PADDING = 0.25
"""Share of a micro-batch's positions that may be padding; a shorter row starts the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B rows of T positions that hold R responses with N trained tokens."""

    input_ids: Tensor
    """int64 [B, T]; padded with 0."""
    position_ids: Tensor
    """int64 [B, T]."""
    attention_mask: Tensor | None
    """bool [B, 1, T, T], true where a position may look; None where every row holds one response (plainly causal)."""
    predict_N: Tensor
    """int64 [N]: index into the flattened [B * T] positions of the one that predicts each trained token."""
    targets_N: Tensor
    """int64 [N]: the trained tokens."""
    lengths: list[int]
    """Trained tokens of each response; R numbers, on the host."""
    responses_R: Tensor
    """int64 [R]: position of each response in the batch, counted group by group."""
    tokens_N: Tensor
    """int64 [N]: position of each token among the batch's trained tokens."""

    @property
    def positions(self) -> int:
        """B * T, padding included: what the forward pass costs."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on another device."""
        fields = {name: getattr(self, name) for name in MicroBatch.__dataclass_fields__}
        moved: dict[str, Any] = {name: f.to(device) for name, f in fields.items() if isinstance(f, Tensor)}
        return replace(self, **moved)


class _Response(NamedTuple):
    """A response, and the positions of it and of its first trained token in the whole batch."""

    number: int
    offset: int
    tokens: Tokens
    trained: NDArray[np.bool_]


@dataclass(slots=True)
class _Row:
    prompt: Tokens
    length: int
    responses: list[_Response] = field(default_factory=list)


def pack(
    groups: Sequence[Group], *, token_budget: int, row_tokens: int = 512, share_prompts: bool = True
) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` positions each (a longer row is alone in its own).

    A row takes another response while it stays within `row_tokens`; without `share_prompts`, as models need it that do
    not attend to all that a mask allows, every response has a row of its own.
    """
    rows = sorted(_rows(groups, row_tokens if share_prompts else 0), key=lambda row: row.length, reverse=True)
    together: list[list[_Row]] = []
    used = 0
    for row in rows:
        if together:
            positions = together[-1][0].length * (len(together[-1]) + 1)
            if positions <= token_budget and used + row.length >= (1 - MOST_PADDING) * positions:
                together[-1].append(row)
                used += row.length
                continue
        together.append([row])
        used = row.length
    return [_to_micro_batch(rows) for rows in together]


def _rows(groups: Sequence[Group], row_tokens: int) -> list[_Row]:
    rows: list[_Row] = []
    number = offset = 0
    for group in groups:
        row: _Row | None = None
        for tokens, trained in zip(group.split(), group.split_trained(), strict=True):
            # The last token of a response is predicted, but predicts nothing.
            inputs = max(len(tokens) - 1, 0)
            if row is None or row.length + inputs > row_tokens:
                row = _Row(group.prompt_tokens, len(group.prompt_tokens))
                rows.append(row)
            row.responses.append(_Response(number, offset, tokens, trained))
            row.length += inputs
            number += 1
            offset += int(trained.sum())
    return rows


def _to_micro_batch(rows: list[_Row]) -> MicroBatch:
    width = max(row.length for row in rows)
    shared = any(len(row.responses) > 1 for row in rows)
    input_ids = np.zeros((len(rows), width), np.int64)
    position_ids = np.tile(np.arange(width), (len(rows), 1))
    # The response a position belongs to: -1 the prompt, -2 padding.
    owner = np.full((len(rows), width), -2)
    predict, targets, numbers, token_positions = [], [], [], []
    for index, row in enumerate(rows):
        start = len(row.prompt)
        input_ids[index, :start] = row.prompt
        owner[index, :start] = -1
        cursor = start
        for which, (number, offset, tokens, trained) in enumerate(row.responses):
            inputs = tokens[:-1]
            end = cursor + len(inputs)
            input_ids[index, cursor:end] = inputs
            position_ids[index, cursor:end] = np.arange(start, start + len(inputs))
            owner[index, cursor:end] = which
            # The prompt's last token predicts the first one, each input the next.
            places = np.r_[start - 1, cursor:end][: len(tokens)] + index * width
            predict.append(places[trained])
            targets.append(tokens[trained])
            token_positions.append(np.arange(offset, offset + trained.sum()))
            numbers.append(number)
            cursor = end
        if shared:
            # A row of several responses may be longer than the model's last position, and so may its padding.
            position_ids[index, cursor:] = 0
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=_attention_mask(torch.from_numpy(owner)) if shared else None,
        predict_N=_concatenate(predict),
        targets_N=_concatenate(targets),
        lengths=[len(tokens) for tokens in targets],
        responses_R=torch.tensor(numbers),
        tokens_N=_concatenate(token_positions),
    )


def _attention_mask(owner_BT: Tensor) -> Tensor:
    width = owner_BT.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = owner_BT[:, :, None] == owner_BT[:, None, :]
    prompt = owner_BT[:, None, :] == -1
    return ((same | prompt) & causal)[:, None]


def _concatenate(parts: list[NDArray[Any]]) -> Tensor:
    """int64."""
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]))
