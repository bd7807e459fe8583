"""The log-prob operation: peak extra memory and time of each way from hidden states to both gradients.

python -m benchmarks.logprobs [--device cuda]

The loss is the naive policy gradient, mean over responses of -advantage * mean log-prob, for every variant. Each case
runs in a process of its own: once to measure its memory, then to measure its time. Extra memory is the peak above the
inputs and the two gradients: resident memory on the CPU (the kernel's high-water mark, reset before the run), the
allocator's counters on the GPU. The arithmetic rate is that of the products a variant needs (2 N H V each), as a share
of the rate of the three plain products of the same shapes. Shapes of an earlier result that are not measured again are
kept (`--tokens`, `--dtypes`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, ROOT, write_results
from driftproof.logprobs import DEFAULT_BUDGET_BYTES, Head, TokenValues, head_gradients
from driftproof.logprobs import token_logprobs as our_token_logprobs

VOCABULARY = 151_936
RESPONSE = 256
"""Tokens of each response."""
SIZES = {
    "cpu": {"tokens": (2048, 8192), "hidden": (1024,), "dtypes": ("float32", "bfloat16")},
    "cuda": {"tokens": (8192, 32_768), "hidden": (2048, 4096), "dtypes": ("bfloat16",)},
}
REPEATS = {"cpu": {2048: 3}, "cuda": {8192: 10, 32_768: 10}}
"""Timed runs for each number of tokens, after one that is not timed; elsewhere one."""
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""For every case: without it a good part of the time on the CPU goes into mapping fresh memory page by page."""
TARGETS = {
    "cpu": {
        "extra memory of ours": "at most 0.05 of full logits, N = 8192",
        "time of head_gradients": "at most 0.8 of full logits",
        "rate of head_gradients": "at least 0.9 of the plain products",
    },
    "cuda": {"rate of ours": "at least 0.75 of the plain products", "time": "below each peer", "memory": "flat in N"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    variant: str
    device: str
    dtype: str
    tokens: int
    hidden: int
    repeats: int
    budget_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """Random inputs of the scale of a language model's: log-probs around -12."""

    hidden_NH: Tensor
    weight_VH: Tensor
    targets_N: Tensor
    advantages_R: Tensor
    budget_bytes: int

    @property
    def lengths(self) -> list[int]:
        return [RESPONSE] * len(self.advantages_R)

    def token_weights(self, responses: slice = slice(None)) -> Tensor:
        """dL / d log-prob of each token."""
        return (-self.advantages_R[responses] / (len(self.advantages_R) * RESPONSE)).repeat_interleave(RESPONSE)


def make_inputs(case: Case) -> Inputs:
    generator = torch.Generator(case.device).manual_seed(0)
    options = {"generator": generator, "device": case.device}
    dtype = getattr(torch, case.dtype)
    weight_VH = torch.empty(VOCABULARY, case.hidden, device=case.device, dtype=dtype)
    return Inputs(
        hidden_NH=torch.randn(case.tokens, case.hidden, **options).to(dtype).requires_grad_(),
        weight_VH=weight_VH.normal_(std=case.hidden**-0.5, generator=generator).requires_grad_(),
        targets_N=torch.randint(VOCABULARY, (case.tokens,), **options),
        advantages_R=torch.randn(case.tokens // RESPONSE, **options),
        budget_bytes=case.budget_bytes,
    )


def full_logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return differentiated(inputs, variant="reference")


def token_logprobs(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return differentiated(inputs, variant="chunked")


def token_logprobs_triton(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return differentiated(inputs, variant="triton")


def differentiated(inputs: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    head = Head(weight_VH=inputs.weight_VH)
    found = our_token_logprobs(inputs.hidden_NH, head, inputs.targets_N, budget_bytes=inputs.budget_bytes, **options)
    return torch.autograd.grad(
        found.logprobs_N, [inputs.hidden_NH, inputs.weight_VH], inputs.token_weights().to(found.logprobs_N.dtype)
    )


def fused(inputs: Inputs, *, variant: str = "chunked") -> tuple[Tensor, Tensor]:
    def token_gradients(scored: TokenValues, responses: slice, tokens: slice) -> TokenValues:
        return TokenValues(logprobs_N=inputs.token_weights(responses))

    head = Head(weight_VH=inputs.weight_VH)
    found = head_gradients(
        inputs.hidden_NH,
        head,
        inputs.targets_N,
        inputs.lengths,
        token_gradients,
        variant=variant,
        budget_bytes=inputs.budget_bytes,
    )
    assert found.weight_VH is not None
    return found.hidden_NH, found.weight_VH


def fused_triton(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return fused(inputs, variant="triton")


def liger(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Its chunked GRPO loss, on policy and without KL, where the gradient is the naive one; a response a chunk.

    What it compiles is the loss on the log-probs alone; here that is done on the GPU only.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="grpo", compiled=inputs.hidden_NH.is_cuda)
    shape = (len(inputs.advantages_R), RESPONSE)
    result = loss(
        inputs.hidden_NH.view(*shape, -1),
        inputs.weight_VH,
        inputs.targets_N.view(shape),
        torch.ones(shape, device=inputs.hidden_NH.device),
        inputs.advantages_R,
    )
    return torch.autograd.grad(result[0], [inputs.hidden_NH, inputs.weight_VH])


def trl(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """What GRPOTrainer's forward pass calls for its log-probs, with the tile width it takes."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    logprobs_N, *_ = ChunkedLogProbFunction.apply(
        inputs.hidden_NH,
        inputs.weight_VH,
        None,
        inputs.targets_N,
        1.0,
        utils._CHUNKED_LOGPROB_CHUNK_SIZE,
        None,
        1.0,
        ("log_probs",),
    )
    return torch.autograd.grad(logprobs_N, [inputs.hidden_NH, inputs.weight_VH], inputs.token_weights())


def plain_products(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The three products into tensors made before, nothing else."""
    hidden_NH, weight_VH = inputs.hidden_NH.detach(), inputs.weight_VH.detach()
    if not _PLAIN:
        _PLAIN.extend(
            (hidden_NH.new_ones(len(hidden_NH), VOCABULARY), torch.zeros_like(hidden_NH), torch.zeros_like(weight_VH))
        )
    logits_NV, hidden_gradient_NH, weight_gradient_VH = _PLAIN
    torch.mm(hidden_NH, weight_VH.T, out=logits_NV)
    torch.mm(logits_NV, weight_VH, out=hidden_gradient_NH)
    torch.mm(logits_NV.T, hidden_NH, out=weight_gradient_VH)
    return hidden_gradient_NH, weight_gradient_VH


_PLAIN: list[Tensor] = []
VARIANTS: dict[str, tuple[int, Callable[[Inputs], tuple[Tensor, Tensor]]]] = {
    "plain products": (3, plain_products),
    "full logits": (3, full_logits),
    "token_logprobs": (4, token_logprobs),
    "head_gradients": (3, fused),
    "token_logprobs, triton": (4, token_logprobs_triton),
    "head_gradients, triton": (3, fused_triton),
    "Liger-Kernel": (4, liger),
    "TRL": (4, trl),
}
"""How many products each needs, and how it is run."""


def reset_peak(device: str) -> int:
    """Bytes held now; the peak counts from here."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def timed(case: Case, inputs: Inputs) -> float:
    run = VARIANTS[case.variant][1]
    started = time.perf_counter()
    gradients = run(inputs)
    if case.device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    del gradients
    return elapsed


def measure(case: Case) -> dict[str, Any]:
    """In this process: memory, times, and what identifies the gradients."""
    products, run = VARIANTS[case.variant]
    # The libraries' own memory is not the variant's.
    small = make_inputs(Case(**asdict(case) | {"tokens": RESPONSE, "hidden": 8}))
    run(small)
    _PLAIN.clear()
    inputs = make_inputs(case)
    before = reset_peak(case.device)
    hidden_NH, weight_VH = run(inputs)
    returned = hidden_NH.nbytes + weight_VH.nbytes
    extra = peak(case.device) - before - returned
    norms = [float(torch.linalg.vector_norm(gradient, dtype=torch.float32)) for gradient in (hidden_NH, weight_VH)]
    del hidden_NH, weight_VH
    seconds = [timed(case, inputs) for _ in range(case.repeats)]
    work = products * 2 * case.tokens * case.hidden * VOCABULARY
    return {
        "extra_MiB": round(extra / 2**20, 1),
        "seconds": round(statistics.median(seconds), 4),
        "all_seconds": [round(value, 4) for value in seconds],
        "GFLOP_per_second": round(work / statistics.median(seconds) / 1e9, 1),
        "gradient_norms": norms,
    }


def in_a_process(case: Case) -> dict[str, Any]:
    """A row of the table; where the process dies, why."""
    command = [sys.executable, "-m", "benchmarks.logprobs", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | HUGE_PAGES)
    row = {"variant": case.variant, "dtype": case.dtype, "tokens": case.tokens, "hidden": case.hidden}
    if done.returncode == 0:
        return row | json.loads(done.stdout.splitlines()[-1])
    killed = "killed, for memory most likely" if done.returncode == -9 else ""
    return row | {"failed": killed or done.stderr.strip().splitlines()[-1]}


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to the rows of one shape their share of the plain rate, and of the time and memory of full logits."""
    by_variant = {row["variant"]: row for row in rows}
    missing = {"failed": "not run"}
    plain, full = by_variant.get("plain products", missing), by_variant.get("full logits", missing)
    for row in rows:
        if "failed" in row or row is plain:
            continue
        if "failed" not in plain:
            row["rate_of_plain"] = round(row["GFLOP_per_second"] / plain["GFLOP_per_second"], 3)
        if "failed" not in full:
            row["time_of_full"] = round(row["seconds"] / full["seconds"], 3)
            row["extra_memory_of_full"] = round(row["extra_MiB"] / full["extra_MiB"], 4)
            tolerance = 1e-2 if row["dtype"] == "bfloat16" else 1e-4
            pairs = zip(row["gradient_norms"], full["gradient_norms"], strict=True)
            row["gradients_agree"] = all(abs(norm - other) <= tolerance * other for norm, other in pairs)


def kept(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier result whose shapes are not among `rows`."""
    path = RESULTS / f"{name}.json"
    earlier: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    shapes = {(row["dtype"], row["tokens"], row["hidden"]) for row in rows}
    return [row for row in earlier if (row["dtype"], row["tokens"], row["hidden"]) not in shapes]


def table(rows: list[dict[str, Any]]) -> str:
    """One line a case, in Markdown."""
    names = ("dtype", "hidden", "tokens", "variant", "extra_MiB", "extra_memory_of_full", "seconds", "time_of_full")
    names += ("rate_of_plain",)
    lines = [" | ".join(names), " | ".join(["---"] * len(names))]
    for row in rows:
        failed = f"failed: {row['failed']}" if "failed" in row else ""
        lines.append(" | ".join(str(row.get(name, failed if name == "extra_MiB" else "")) for name in names))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help=f"multiples of {RESPONSE}")
    parser.add_argument("--dtypes", nargs="+")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS))
    parser.add_argument("--budget", type=int, default=DEFAULT_BUDGET_BYTES, help="bytes of logits at a time, for ours")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)))))
        return
    sizes = SIZES[arguments.device]
    given = {name: value for name, value in vars(arguments).items() if name in sizes and value is not None}
    sizes = sizes | given
    variants = arguments.variants or [name for name in VARIANTS if arguments.device == "cuda" or "triton" not in name]
    rows: list[dict[str, Any]] = []
    for dtype in sizes["dtypes"]:
        for hidden in sizes["hidden"]:
            for tokens in sizes["tokens"]:
                shape = {"device": arguments.device, "dtype": dtype, "tokens": tokens, "hidden": hidden}
                repeats = arguments.repeats or REPEATS[arguments.device].get(tokens, 1)
                options = {"repeats": repeats, "budget_bytes": arguments.budget}
                found = [in_a_process(Case(variant=variant, **shape, **options)) for variant in variants]
                compare(found)
                rows += found
                print(table(found), flush=True)
    name = "logprobs" if arguments.device == "cpu" else f"logprobs_{arguments.device}"
    rows = kept(name, rows) + rows
    write_results(
        name,
        command=" ".join(["python -m benchmarks.logprobs", *sys.argv[1:]]),
        packages={name: version(name) for name in ("liger-kernel", "trl", "triton")},
        device=torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU; no GPU was there",
        threads=torch.get_num_threads(),
        allocator=HUGE_PAGES,
        vocabulary=VOCABULARY,
        tokens_of_a_response=RESPONSE,
        budget_bytes=arguments.budget,
        targets=TARGETS[arguments.device],
        rows=rows,
    )
    print(table(rows))


if __name__ == "__main__":
    main()
