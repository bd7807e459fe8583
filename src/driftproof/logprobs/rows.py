"""The elementwise work on a block of logits, in torch: statistics of each row, and the gradient in the block's place.

From the logits [N, V] on everything is float32, or float64 where the logits are. No temporary is as large as they are:
a few rows at a time pass through all operations while they are in the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftproof.logprobs.values import TokenValues

# So far below the mean of z a token's probability is 0, in float64 too; a distance of infinity would make 0 * inf.
_FARTHEST = 1e6
# exp of this, and of its negative, leaves room in float32 for the vocabulary and for small gradients.
_PLAIN_LSE = 60.0
# Logits that pass through all operations together: they stay in the cache of a core, or fill a GPU.
_PER_THREAD, _PER_GPU = 2**18, 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowStatistics:
    """Numbers that are kept of a block's rows, [N] each; z are the logits after soft-cap and temperature."""

    lse_N: Tensor
    """log sum exp z; -inf where every z is."""
    target_N: Tensor
    """z at the target."""
    mean_N: Tensor | None
    """Mean of z under softmax(z); None unless asked for."""


def row_statistics(
    logits_NV: Tensor, targets_N: Tensor, *, temperature: float, softcap: float | None, want_mean: bool
) -> RowStatistics:
    """The block is only read."""
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    target_N = _at_targets(logits_NV, targets_N, dtype, temperature, softcap)[:, 0]
    lse_N = torch.empty_like(target_N)
    mean_N = torch.empty_like(target_N) if want_mean else None
    groups = _groups(logits_NV)
    buffer = _buffer(logits_NV, groups, dtype)
    if not logits_NV.is_cuda:
        for rows in groups:
            _sum_up(_scaled(logits_NV[rows], temperature, softcap, out=buffer), lse_N[rows], _rows(mean_N, rows))
    for rows in groups if _needs_shift(lse_N) else []:
        z = _scaled(logits_NV[rows], temperature, softcap, out=buffer)
        largest = z.amax(1)
        shift = largest.where(largest.isfinite(), 0)
        _sum_up(z.sub_(shift[:, None]), lse_N[rows], _rows(mean_N, rows))
        lse_N[rows] += shift
        if mean_N is not None:
            mean_N[rows] += shift
    return RowStatistics(lse_N=lse_N, target_N=target_N, mean_N=mean_N)


def logit_gradients_(
    logits_NV: Tensor,
    targets_N: Tensor,
    lse_N: Tensor,
    gradients: TokenValues,
    mean_N: Tensor | None,
    *,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """Overwrite the block with dL / d logits, in its own dtype, and return it.

    `mean_N` is needed only where `gradients` has an entropy. A row without a possible token (lse -inf) gets no gradient
    but its target's.
    """
    # dL / d logits = slope / temperature * (1[target] g - p (g + h (z - mean))), and p = exp(z - shift) * scale.
    g_N1 = gradients.logprobs_N[:, None].to(lse_N.dtype) / temperature
    h_N1 = None if gradients.entropy_N is None else gradients.entropy_N[:, None].to(lse_N.dtype) / temperature
    shift_N1, scale_N1 = None, (-lse_N[:, None]).exp()
    if _needs_shift(lse_N):
        shift_N1, scale_N1 = lse_N[:, None].where(lse_N[:, None] > -torch.inf, 0), torch.ones_like(g_N1)
    scaled_g_N1, scaled_h_N1 = g_N1 * -scale_N1, None if h_N1 is None else h_N1 * -scale_N1

    def weigh_(z: Tensor, rows: slice, g: Tensor | None) -> None:
        """z into the gradient by the logits; `g` is added where z are the targets'."""
        slope = None if softcap is None else (z * (temperature / softcap)).square_().neg_().add_(1)
        factor = scaled_g_N1[rows]
        if scaled_h_N1 is not None and mean_N is not None:
            distance = (z - mean_N[rows, None]).clamp_min_(-_FARTHEST)
            factor = distance.mul_(scaled_h_N1[rows]).add_(factor)
        if shift_N1 is not None:
            z.sub_(shift_N1[rows])
        z.exp_().mul_(factor)
        if g is not None:
            z.add_(g)
        if slope is not None:
            z.mul_(slope)

    z_N1 = _at_targets(logits_NV, targets_N, lse_N.dtype, temperature, softcap)
    weigh_(z_N1, slice(None), g_N1)
    groups = _groups(logits_NV)
    buffer = None if logits_NV.dtype == lse_N.dtype else _buffer(logits_NV, groups, lse_N.dtype)
    for rows in groups:
        logits = logits_NV[rows]
        z = _scaled(logits, temperature, softcap, out=logits if buffer is None else buffer)
        weigh_(z, rows, None)
        if buffer is not None:
            logits.copy_(z)
    return logits_NV.scatter_(1, targets_N[:, None], z_N1.to(logits_NV.dtype))


def _groups(block_NV: Tensor) -> list[slice]:
    """A few rows at a time."""
    together = _PER_GPU if block_NV.is_cuda else _PER_THREAD * torch.get_num_threads()
    size = max(1, together // block_NV.shape[1])
    return [slice(first, min(first + size, len(block_NV))) for first in range(0, len(block_NV), size)]


def _buffer(block_NV: Tensor, groups: list[slice], dtype: torch.dtype) -> Tensor:
    """For the largest group."""
    rows = groups[0].stop if groups else 0
    return block_NV.new_empty((rows, block_NV.shape[1]), dtype=dtype)


def _rows(tensor_N: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor_N is None else tensor_N[rows]


def _at_targets(
    logits_NV: Tensor, targets_N: Tensor, dtype: torch.dtype, temperature: float, softcap: float | None
) -> Tensor:
    """z at the targets, [N, 1]."""
    logits_N1 = logits_NV.gather(1, targets_N[:, None])
    return _scaled(logits_N1, temperature, softcap, out=torch.empty_like(logits_N1, dtype=dtype))


def _scaled(logits: Tensor, temperature: float, softcap: float | None, *, out: Tensor) -> Tensor:
    """z in the first rows of `out`, which may be the logits."""
    z = out[: len(logits)]
    if z.data_ptr() != logits.data_ptr():
        z.copy_(logits)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z if temperature == 1.0 else z.div_(temperature)


def _sum_up(z: Tensor, lse: Tensor, mean: Tensor | None) -> None:
    """log sum exp z and the mean of z under softmax(z) of each row, into `lse` and `mean`; z is overwritten."""
    if mean is None:
        torch.sum(z.exp_(), 1, out=lse)
    else:
        weight = z.exp()
        torch.sum(weight, 1, out=lse)
        torch.sum(weight.mul_(z.clamp_min_(-_FARTHEST)), 1, out=mean).div_(lse.where(lse > 0, 1))
    lse.log_()


def _needs_shift(lse_N: Tensor) -> bool:
    """Whether exp z of some row may be too large or too small to be summed as it is: seldom, for a language model.

    To look would make the host wait for a GPU, which has the time for a shift anyway.
    """
    return lse_N.is_cuda or not bool((lse_N.abs() <= _PLAIN_LSE).all())
