"""Sampling: logits to tokens, for all rows of a batch at once, each row by its own settings.

Guarantees: a row's token depends on its logits, its settings and one uniform number, never on the other rows; a token
that the settings exclude, or of probability 0, is never drawn; a row whose logits are no distribution (NaN or infinite)
is marked by the token V, one past the vocabulary, never hidden; log-probs are computed only when asked for.

Ids that only pad the vocabulary are never drawn, which is all that makes the sampled distribution differ from the
learner's: log-probs stay those of the whole vocabulary, so that the ratio of fresh data is 1. Greedy rows are not drawn
for: they take the likeliest id of all, as `generate` of transformers does.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def streams(seed: int, samples: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The random stream of each sample index of a request with `seed` (any integer): uint64, same shape."""
    base = _mix(np.array([seed & _WORD], dtype=np.uint64))
    return _mix(base + samples.astype(np.uint64) * np.uint64(_GOLDEN))


def uniforms(stream: NDArray[np.uint64], position: NDArray[np.int64]) -> NDArray[np.float32]:
    """The number of each stream at a position: float32 in [0, 1), a multiple of 2^-24."""
    bits = _mix(stream + (position.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """Sampling settings of B rows as tensors. What no row asks for is None and costs nothing."""

    temperature: Tensor | None
    """float32 [B, 1], 1 for greedy rows."""
    greedy: Tensor | None
    """int64: the greedy rows."""
    all_greedy: bool
    cut: tuple[Tensor, Tensor, Tensor] | None
    """The rows with top_k or top_p, int64 [F]; top_k, int64 [F, 1], V where off; top_p, float32 [F, 1], 2 where off."""
    excluded: Tensor | None
    """int64 [E]: ids that are never drawn."""

    @classmethod
    def of(
        cls,
        temperature: NDArray[np.float32],
        top_k: NDArray[np.int64],
        top_p: NDArray[np.float32],
        *,
        vocabulary: int,
        device: torch.device,
        excluded: Tensor | None = None,
    ) -> Self:
        """Settings from arrays [B] in the meaning of `Sampling`; `vocabulary` is V."""
        greedy = temperature == 0
        cut = np.flatnonzero(~greedy & (((top_k > 0) & (top_k < vocabulary)) | (top_p < 1)))
        scale = np.where(greedy, np.float32(1), temperature)
        k = np.where(top_k[cut] > 0, top_k[cut], vocabulary)
        # Rounding must neither cut a row that asked for all (top_p 1) nor leave one nothing (top_p below float32).
        p = np.where(top_p[cut] < 1, np.maximum(top_p[cut], np.finfo(np.float32).tiny), np.float32(2))
        tensor = partial(torch.as_tensor, device=device)
        return cls(
            temperature=tensor(scale[:, None]) if (scale != 1).any() else None,
            greedy=tensor(np.flatnonzero(greedy)) if greedy.any() else None,
            all_greedy=bool(greedy.all()),
            cut=(tensor(cut), tensor(k[:, None]), tensor(p[:, None])) if len(cut) else None,
            excluded=excluded,
        )


def sample(
    logits: Tensor, settings: RowSettings, uniform: NDArray[np.float32], *, want_logprobs: bool
) -> tuple[Tensor, Tensor | None]:
    """Draw one token per row of `logits` [B, V], of any floating dtype, at `uniform` [B] in [0, 1).

    Returns tokens int64 [B], V where a row is no distribution; and, if wanted, log-probs float32 [B], at most 0, of the
    distribution that was sampled from: after temperature, top_k and top_p, renormalised; without either, that of the
    whole vocabulary, excluded ids and all. A greedy row is sampled from a point mass, so its log-prob is 0, as with
    top_k = 1.
    """
    if settings.all_greedy:
        best = logits.max(dim=-1)
        tokens = best.indices.masked_fill(~best.values.isfinite(), logits.shape[-1])
        return tokens, torch.zeros(len(tokens), device=logits.device) if want_logprobs else None
    adjusted = adjust(logits, settings)
    tokens = draw(adjusted.softmax(dim=-1), torch.as_tensor(uniform, device=logits.device))
    if not want_logprobs:
        return tokens, None
    known = tokens.clamp(max=logits.shape[-1] - 1)
    logprobs = adjusted.log_softmax(dim=-1).gather(1, known[:, None]).squeeze(1)
    if settings.excluded is not None:
        logprobs += _taken(logits, settings.excluded, settings)
    return tokens, logprobs.clamp(max=0)


def adjust(logits: Tensor, settings: RowSettings) -> Tensor:
    """float32 logits [B, V] whose softmax is the distribution to sample from; -inf where it is 0."""
    whole = logits
    if settings.excluded is not None:
        logits = logits.index_fill(-1, settings.excluded, -torch.inf)
    logits = _scaled(logits, settings)
    if settings.cut is not None:
        rows, top_k, top_p = settings.cut
        logits = logits.index_copy(0, rows, _cut(logits[rows], top_k, top_p))
    if settings.greedy is not None:
        logits = logits.index_copy(0, settings.greedy, _point_mass(whole[settings.greedy].float()))
    return logits


def _scaled(logits: Tensor, settings: RowSettings) -> Tensor:
    logits = logits.float()
    if settings.temperature is None:
        return logits
    # From the largest down, so that no temperature, however small, can overflow.
    return (logits - logits.amax(dim=-1, keepdim=True)) / settings.temperature


def _taken(logits: Tensor, excluded: Tensor, settings: RowSettings) -> Tensor:
    """By how much the excluded ids lower the log-probs [B] of the others; not at all in rows that are cut or greedy."""
    scaled = _scaled(logits, settings)
    taken = scaled.index_fill(-1, excluded, -torch.inf).logsumexp(dim=-1) - scaled.logsumexp(dim=-1)
    for rows in (settings.greedy, settings.cut[0] if settings.cut else None):
        taken = taken if rows is None else taken.index_fill(0, rows, 0.0)
    return taken


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Tokens int64 [B]: the inverse CDF of `probabilities` (float32 [B, V]) at `uniform` (float32 [B]); V for NaN."""
    last = probabilities.shape[-1] - 1
    cdf = probabilities.cumsum(dim=-1)
    tokens = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(-1)
    # A parallel cumsum need not be monotone in its last bits; where it led to an impossible token, take the likeliest.
    chance = probabilities.gather(1, tokens.clamp(max=last)[:, None]).squeeze(1)
    missed = (chance == 0) | ((tokens > last) & chance.isfinite())
    if bool(missed.any()):
        tokens = torch.where(missed, probabilities.argmax(dim=-1), tokens)
    return tokens


def _cut(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set to -inf all but the top_k likeliest, then all but the fewest of these whose probabilities reach top_p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= top_k, -torch.inf)
    chance = ordered.softmax(dim=-1)
    before = chance.cumsum(dim=-1) - chance
    return torch.empty_like(logits).scatter_(-1, order, ordered.masked_fill(before >= top_p, -torch.inf))


def _point_mass(logits: Tensor) -> Tensor:
    """0 at the first largest logit and -inf elsewhere; a row with NaN or infinite logits stays without distribution."""
    best = logits.max(dim=-1, keepdim=True)
    return torch.full_like(logits, -torch.inf).scatter_(-1, best.indices, best.values * 0)
