"""The elementwise work on a block of logits as two Triton kernels, for the GPU.

The functions are those of `rows`, same signatures and same results to rounding. The statistics read the block once, the
gradients read it once and write it once; neither makes a temporary of its size, and neither waits for the GPU.

Both passes are to be bound by memory: 4096 columns over 8 warps are two 16-byte loads a thread in half precision,
at few enough registers that an SM holds several programs. A vocabulary that is no multiple of 16 is read element by
element. Where `TRITON_INTERPRET=1` was set before Triton's first import, the kernels run on the CPU, slowly.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from driftproof.logprobs.rows import RowStatistics
from driftproof.logprobs.values import TokenValues

_BLOCK = 4096
_COLUMNS_PER_WARP = 512
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Decided when Triton was imported, whatever the environment says since.
_INTERPRETED = not isinstance(tl.sum, triton.JITFunction)


def row_statistics(
    logits_NV: Tensor, targets_N: Tensor, *, temperature: float, softcap: float | None, want_mean: bool
) -> RowStatistics:
    """One read of the block: bfloat16, float16, float32 or float64, each row contiguous.

    A target outside the block gives NaN: a check would make the host wait for the GPU.
    """
    _check(logits_NV, targets_N)
    tokens, vocabulary = logits_NV.shape
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    lse_N, target_N = (torch.empty(tokens, dtype=dtype, device=logits_NV.device) for _ in range(2))
    mean_N = torch.empty_like(lse_N) if want_mean else None
    if tokens > 0:
        with torch.cuda.device_of(logits_NV):
            _statistics_kernel[(tokens,)](
                logits_NV,
                targets_N.contiguous(),
                lse_N,
                target_N,
                mean_N,
                vocabulary,
                logits_NV.stride(0),
                **_arguments(vocabulary, dtype, temperature, softcap),
            )
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
    _check(logits_NV, targets_N, lse_N, gradients.logprobs_N, gradients.entropy_N, mean_N)
    if gradients.entropy_N is not None and mean_N is None:
        raise ValueError("an entropy's gradient needs mean_N; compute the statistics with want_mean=True")
    vocabulary = logits_NV.shape[1]
    if logits_NV.numel() > 0:
        arguments = _arguments(vocabulary, lse_N.dtype, temperature, softcap)
        # Columns and rows share the one grid axis that may be longer than 65,535.
        programs = logits_NV.shape[0] * triton.cdiv(vocabulary, arguments["BLOCK"])
        with torch.cuda.device_of(logits_NV):
            _gradients_kernel[(programs,)](
                logits_NV,
                targets_N.contiguous(),
                lse_N.contiguous(),
                gradients.logprobs_N.contiguous(),
                None if gradients.entropy_N is None else gradients.entropy_N.contiguous(),
                None if mean_N is None else mean_N.contiguous(),
                vocabulary,
                logits_NV.stride(0),
                **arguments,
            )
    return logits_NV


def _check(logits_NV: Tensor, *vectors: Tensor | None) -> None:
    if logits_NV.dim() != 2 or logits_NV.dtype not in _DTYPES:
        raise ValueError(f"the logits are {logits_NV.dtype} {list(logits_NV.shape)}; they must be [N, V] of {_DTYPES}")
    if logits_NV.stride(1) != 1 and logits_NV.shape[1] > 1:
        raise ValueError(f"the logits have strides {logits_NV.stride()}; each row must be contiguous")
    if not (logits_NV.is_cuda or _INTERPRETED):
        raise ValueError(f"the logits are on {logits_NV.device}; the Triton kernels run on a GPU, take 'chunked' here")
    for vector in vectors:
        if vector is not None and (vector.shape != logits_NV.shape[:1] or vector.device != logits_NV.device):
            given = f"shape {list(vector.shape)} on {vector.device}"
            raise ValueError(f"a vector of {given}; it must be [{len(logits_NV)}] on {logits_NV.device}")


def _arguments(vocabulary: int, dtype: torch.dtype, temperature: float, softcap: float | None) -> dict[str, Any]:
    """The arguments that both kernels share."""
    block = min(_BLOCK, triton.next_power_of_2(max(vocabulary, 1)))
    return {
        "inverse_temperature": 1.0 / temperature,
        "softcap": 1.0 if softcap is None else float(softcap),
        "CAPPED": softcap is not None,
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK": block,
        "num_warps": max(1, block // _COLUMNS_PER_WARP),
        "enable_fp_fusion": True,
    }


@triton.jit
def _statistics_kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    lse: tl.tensor,
    target_z: tl.tensor,
    mean: tl.tensor,
    vocabulary: tl.tensor,
    row_stride: tl.tensor,
    inverse_temperature: tl.float64,
    softcap: tl.float64,
    CAPPED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program a row, in one pass: what was summed under an older maximum is rescaled to the new one."""
    row = tl.program_id(0)
    row_logits = logits + row.to(tl.int64) * row_stride
    largest = tl.full((), float("-inf"), DTYPE)
    shift = tl.full((), 0.0, DTYPE)
    total = tl.full((), 0.0, DTYPE)
    weighted = tl.full((), 0.0, DTYPE)
    for first in range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x = tl.load(row_logits + columns, mask=inside, other=0.0).to(DTYPE)
        z, _ = _scaled(x, inverse_temperature, softcap, CAPPED, DTYPE)
        z = tl.where(inside, z, float("-inf"))
        previous, previous_shift = largest, shift
        largest = tl.maximum(largest, tl.max(z, 0))
        # As long as no token is possible: -inf - 0, not -inf - -inf.
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        rescale = tl.exp(previous - shift)
        weight = tl.exp(z - shift)
        total *= rescale
        if mean is not None:
            # An impossible token weighs 0 and must not make 0 * -inf.
            distance = tl.where(weight > 0, z - shift, 0.0)
            weighted = weighted * rescale + total * (previous_shift - shift) + tl.sum(weight * distance, 0)
        total += tl.sum(weight, 0)
    tl.store(lse + row, tl.log(total) + shift)
    if mean is not None:
        tl.store(mean + row, weighted / tl.where(total == 0, 1.0, total) + shift)
    target = tl.load(targets + row)
    inside = (target >= 0) & (target < vocabulary)
    x = tl.load(row_logits + target, mask=inside, other=float("nan")).to(DTYPE)
    z, _ = _scaled(x, inverse_temperature, softcap, CAPPED, DTYPE)
    tl.store(target_z + row, z)


@triton.jit
def _gradients_kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    lse: tl.tensor,
    logprob_gradients: tl.tensor,
    entropy_gradients: tl.tensor,
    mean: tl.tensor,
    vocabulary: tl.tensor,
    row_stride: tl.tensor,
    inverse_temperature: tl.float64,
    softcap: tl.float64,
    CAPPED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per BLOCK columns of a row."""
    blocks = tl.cdiv(vocabulary, BLOCK)
    row = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    places = logits + row.to(tl.int64) * row_stride + columns
    x = tl.load(places, mask=inside, other=float("-inf")).to(DTYPE)
    z, slope = _scaled(x, inverse_temperature, softcap, CAPPED, DTYPE)
    row_lse = tl.load(lse + row).to(DTYPE)
    probability = tl.exp(z - tl.where(row_lse == float("-inf"), 0.0, row_lse))
    at_logprob = tl.load(logprob_gradients + row).to(DTYPE)
    weight = at_logprob
    if entropy_gradients is not None:
        # An impossible token's z - mean is -inf; its probability of 0 must stay.
        distance = tl.where(probability > 0, z - tl.load(mean + row).to(DTYPE), 0.0)
        weight += tl.load(entropy_gradients + row).to(DTYPE) * distance
    gradient = tl.where(columns == tl.load(targets + row), at_logprob, 0.0) - probability * weight
    tl.store(places, (gradient * slope).to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _scaled(
    x: tl.tensor, inverse_temperature: tl.tensor, softcap: tl.tensor, CAPPED: tl.constexpr, DTYPE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """z of raw logits x, and d z / d x."""
    slope = tl.full((), inverse_temperature, DTYPE)
    z = x
    if CAPPED:
        cap = tl.full((), softcap, DTYPE)
        ratio = x / cap
        # 1 - tanh^2 and tanh of |ratio| from e^(-2 |ratio|), which cannot overflow. Near 0 tanh's difference would
        # cancel; its series is exact to float64 there.
        decay = tl.exp(-2.0 * tl.abs(ratio))
        square = ratio * ratio
        series = 1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
        far = (1.0 - decay) / (1.0 + decay)
        z = cap * tl.where(square < 0.0025, ratio * series, tl.where(ratio < 0, -far, far))
        slope *= 4.0 * decay / ((1.0 + decay) * (1.0 + decay))
    return z * tl.full((), inverse_temperature, DTYPE), slope
