"""The Triton kernels against the torch functions: on the GPU where there is one, else by Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux only")

from driftproof.logprobs import Head, TokenValues, head_gradients, rows, token_logprobs, triton_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDE = 4096  # columns of one program


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A block of logits, and what the two functions take beside it."""

    logits: Tensor
    targets: Tensor
    at_logprob: Tensor
    at_entropy: Tensor | None
    temperature: float = 1.0
    softcap: float | None = None

    def statistics(self, module) -> rows.RowStatistics:
        return module.row_statistics(
            self.logits, self.targets, temperature=self.temperature, softcap=self.softcap, want_mean=True
        )

    def gradients(self, module, statistics: rows.RowStatistics) -> Tensor:
        return module.logit_gradients_(
            self.logits.clone(),
            self.targets,
            statistics.lse_N,
            TokenValues(logprobs_N=self.at_logprob, entropy_N=self.at_entropy),
            statistics.mean_N if self.at_entropy is not None else None,
            temperature=self.temperature,
            softcap=self.softcap,
        )


def case(
    tokens: int,
    vocabulary: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    spread: float = 3.0,
    impossible: float = 0.0,
    entropy: bool = True,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Case:
    """Random logits, of which the share `impossible` is -inf (never the first column)."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(tokens, vocabulary, generator=generator)
    logits[:, 1:].masked_fill_(torch.rand(tokens, vocabulary - 1, generator=generator) < impossible, -torch.inf)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    at_logprob, at_entropy = torch.randn(2, tokens, generator=generator).to(DEVICE, exact)
    return Case(
        logits=logits.to(DEVICE, dtype),
        targets=torch.randint(vocabulary, (tokens,), generator=generator).to(DEVICE),
        at_logprob=at_logprob,
        at_entropy=at_entropy if entropy else None,
        temperature=temperature,
        softcap=softcap,
    )


cases = st.builds(
    case,
    st.integers(0, 5),
    st.integers(1, 40) | st.sampled_from([WIDE - 1, WIDE, WIDE + 1, 2 * WIDE + 17]),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    spread=st.sampled_from([0.01, 3.0, 30.0]),
    impossible=st.sampled_from([0.0, 0.5, 1.0]),
    entropy=st.booleans(),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    softcap=st.sampled_from([None, 0.5, 30.0, 1e4]),
)


def largest_z(of: Case) -> float:
    """Of the finite z; an impossible token is finite once it is capped."""
    sizes = of.logits.double().abs()
    sizes = sizes.where(sizes.isfinite(), 0) if of.softcap is None else sizes.clamp_max(of.softcap)
    return (sizes.max().item() if sizes.numel() else 0.0) / of.temperature


def rounding(dtype: torch.dtype) -> float:
    """Ten roundings of the dtype that is computed in."""
    return 10 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


@given(cases)
@settings(max_examples=80)
def test_statistics_are_those_of_the_torch_functions(of: Case):
    expected, found = of.statistics(rows), of.statistics(triton_rows)
    tolerance = rounding(of.logits.dtype) * (1 + largest_z(of))
    for name in ("lse_N", "target_N", "mean_N"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance, msg=name)


@given(cases)
@settings(max_examples=80)
def test_gradients_are_those_of_the_torch_functions(of: Case):
    statistics = of.statistics(rows)
    expected, found = of.gradients(rows, statistics), of.gradients(triton_rows, statistics)
    assert found.dtype == of.logits.dtype
    # A probability is off by the rounding of z, a half-precision gradient by one rounding of its own besides.
    weight = 1 + largest_z(of) if of.at_entropy is not None else 1
    tolerance = rounding(of.logits.dtype) * (1 + largest_z(of)) * weight * 4 / of.temperature
    relative = torch.finfo(of.logits.dtype).eps if of.logits.dtype.itemsize == 2 else 0
    smallest = torch.finfo(of.logits.dtype).smallest_normal * torch.finfo(of.logits.dtype).eps
    torch.testing.assert_close(found.double(), expected.double(), rtol=relative, atol=tolerance + smallest)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradients_are_those_of_autograd(softcap: float | None):
    of = case(4, WIDE + 100, dtype=torch.float64, temperature=0.7, softcap=softcap)
    leaf = of.logits.clone().requires_grad_()
    z = (leaf if softcap is None else softcap * torch.tanh(leaf / softcap)) / 0.7
    distribution = z.log_softmax(-1)
    log_p = distribution.gather(1, of.targets[:, None])[:, 0]
    entropy = -(distribution.exp() * distribution).sum(-1)
    (of.at_logprob * log_p + of.at_entropy * entropy).sum().backward()
    found = of.gradients(triton_rows, of.statistics(triton_rows))
    torch.testing.assert_close(found, leaf.grad, rtol=1e-12, atol=1e-12)


def test_the_mean_is_computed_only_when_asked_for():
    of = case(3, 7)
    found = triton_rows.row_statistics(of.logits, of.targets, temperature=1.0, softcap=None, want_mean=False)
    assert found.mean_N is None
    torch.testing.assert_close(found.lse_N, of.logits.logsumexp(-1))


def test_gradients_overwrite_the_block_and_nothing_beside_it():
    of = case(3, WIDE + 5)
    statistics = of.statistics(rows)
    wide = torch.full((3, WIDE + 30), 7.0, device=DEVICE)
    block = wide[:, 11 : 11 + WIDE + 5]
    block.copy_(of.logits)
    found = triton_rows.logit_gradients_(
        block,
        of.targets,
        statistics.lse_N,
        TokenValues(logprobs_N=of.at_logprob, entropy_N=of.at_entropy),
        statistics.mean_N,
        temperature=1.0,
        softcap=None,
    )
    assert found is block
    torch.testing.assert_close(block, of.gradients(rows, statistics), rtol=1e-5, atol=1e-5)
    assert (wide[:, :11] == 7).all()
    assert (wide[:, 11 + WIDE + 5 :] == 7).all()


def test_strided_rows_and_vectors_are_read_as_they_are():
    of = case(6, 33)
    statistics = of.statistics(rows)
    some = Case(
        logits=of.logits[::2],
        targets=of.targets[::2],
        at_logprob=torch.ones((), device=DEVICE).expand(3),
        at_entropy=torch.randn(3, 2, device=DEVICE)[:, 0],
    )
    torch.testing.assert_close(some.statistics(triton_rows).lse_N, statistics.lse_N[::2])
    exact = some.statistics(rows)
    torch.testing.assert_close(some.gradients(triton_rows, exact), some.gradients(rows, exact), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of the interpreter, in a branch not taken
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_certain_and_impossible_tokens_stay_finite(softcap: float | None):
    """Logits far beyond exp's range, -inf beside them, and a target that is impossible."""
    of = Case(
        logits=torch.tensor([[1e38, -1e38, 0.0], [0.0, -torch.inf, -torch.inf]], device=DEVICE),
        targets=torch.tensor([0, 1], device=DEVICE),
        at_logprob=torch.tensor([1.0, 1.0], device=DEVICE),
        at_entropy=torch.tensor([3.0, 3.0], device=DEVICE),
        softcap=softcap,
    )
    found = of.statistics(triton_rows)
    assert found.mean_N is not None
    assert torch.isfinite(found.lse_N).all()
    assert torch.isfinite(found.mean_N).all()
    assert torch.isfinite(of.gradients(triton_rows, found)).all()
    log_p = found.target_N - found.lse_N
    if softcap is None:
        assert log_p.tolist() == [0.0, -torch.inf]
    else:
        torch.testing.assert_close(
            log_p, torch.tensor([[5.0, -5.0, 0.0], [0.0, -5.0, -5.0]], device=DEVICE).log_softmax(-1).diagonal()
        )


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log")
def test_columns_without_a_possible_token_count_for_nothing():
    """The first program's columns in one row, all of another."""
    of = case(2, WIDE + 3)
    of.logits[0, :WIDE] = -torch.inf
    of.logits[1] = -torch.inf
    of.targets[:] = torch.tensor([WIDE + 1, 7])
    found = of.statistics(triton_rows)
    assert found.mean_N is not None
    torch.testing.assert_close(found.lse_N[0], of.logits[0, WIDE:].logsumexp(0))
    assert (found.lse_N[1].item(), found.target_N[1].item(), found.mean_N[1].item()) == (-torch.inf, -torch.inf, 0)
    gradients = of.gradients(triton_rows, found)
    assert gradients[0, WIDE:].count_nonzero() == 3
    assert gradients[0, :WIDE].count_nonzero() == 0
    assert gradients[1].nonzero().tolist() == [[7]], "its target's alone"


@pytest.mark.parametrize("target", [5, 10**12, -1])
def test_a_target_outside_the_block_is_never_read(target: int):
    of = case(2, 5)
    targets = torch.tensor([target, 2], device=DEVICE)
    found = triton_rows.row_statistics(of.logits, targets, temperature=1.0, softcap=None, want_mean=False)
    assert found.target_N.isnan().tolist() == [True, False]


def test_a_logit_that_is_no_number_shows():
    of = case(2, WIDE + 3)
    of.logits[0, WIDE + 1] = torch.nan
    found = of.statistics(triton_rows)
    assert found.mean_N is not None
    assert found.lse_N.isnan().tolist() == found.mean_N.isnan().tolist() == [True, False]


def test_what_the_kernels_cannot_take_is_refused():
    of = case(3, 7)
    statistics = of.statistics(rows)
    options = {"temperature": 1.0, "softcap": None}

    def scored(logits: Tensor, targets: Tensor = of.targets) -> None:
        triton_rows.row_statistics(logits, targets, want_mean=False, **options)

    with pytest.raises(ValueError, match="each row must be contiguous"):
        scored(of.logits.T.contiguous().T)
    with pytest.raises(ValueError, match=r"int32 \[3, 7\]; they must be \[N, V\]"):
        scored(of.logits.int())
    with pytest.raises(ValueError, match=r"they must be \[N, V\]"):
        scored(of.logits[0])
    with pytest.raises(ValueError, match=r"shape \[2\].*it must be \[3\]"):
        scored(of.logits, of.targets[:2])
    with pytest.raises(ValueError, match="needs mean_N"):
        triton_rows.logit_gradients_(
            of.logits,
            of.targets,
            statistics.lse_N,
            TokenValues(logprobs_N=of.at_logprob, entropy_N=of.at_entropy),
            None,
            **options,
        )


WITHOUT_INTERPRETER = """
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from driftproof.logprobs import triton_rows

try:
    triton_rows.row_statistics(torch.zeros(1, 2), torch.zeros(1).long(), temperature=1.0, softcap=None, want_mean=False)
except ValueError as error:
    print(error)

def compile_for_hopper(kernel, logits, exact, entropy, capped, block):
    pointers = {"logits": logits, "targets": "i64"}
    types = {"vocabulary": "i32", "row_stride": "i32", "inverse_temperature": "fp64", "softcap": "fp64"}
    fixed = {"CAPPED": capped, "DTYPE": tl.float64 if exact == "fp64" else tl.float32, "BLOCK": block}
    if not entropy:
        fixed |= {"mean": None, "entropy_gradients": None}
    fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in fixed else types.get(name, "*" + pointers.get(name, exact))
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=fixed)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})

for kernel in (triton_rows._statistics_kernel, triton_rows._gradients_kernel):
    for logits, exact, entropy, capped, block in (
        ("bf16", "fp32", False, False, 4096),
        ("fp16", "fp32", True, True, 4096),
        ("fp32", "fp32", True, False, 1),
        ("fp64", "fp64", True, True, 32),
    ):
        print(len(compile_for_hopper(kernel, logits, exact, entropy, capped, block).asm["cubin"]) > 0)
"""


@pytest.mark.slow
def test_without_the_interpreter_the_kernels_refuse_the_cpu_and_compile_for_hopper(tmp_path):
    """The interpreter accepts what the compiler may not; compiling for a GPU needs none."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_INTERPRETER],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    refusal, *compiled = finished.stdout.splitlines()
    assert "the logits are on cpu; the Triton kernels run on a GPU" in refusal
    assert compiled == ["True"] * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Hidden states, a head and targets, and the bytes that their logits may take."""

    hidden: Tensor
    head: Head
    targets: Tensor
    budget_bytes: int

    @classmethod
    def of(
        cls, tokens: int, width: int, vocabulary: int, dtype: torch.dtype, *, budget_bytes: int, **options: float
    ) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        hidden, weight, bias = (
            torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()
            for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
        )
        return cls(
            hidden=hidden,
            head=Head(weight_VH=weight, bias_V=bias, **options),
            targets=torch.randint(vocabulary, (tokens,), generator=generator).to(DEVICE),
            budget_bytes=budget_bytes,
        )

    def differentiated(self, variant: str) -> list[Tensor]:
        """Log-probs, entropy, and what autograd makes of them."""
        scored = token_logprobs(
            self.hidden, self.head, self.targets, want_entropy=True, variant=variant, budget_bytes=self.budget_bytes
        )
        assert scored.entropy_N is not None
        loss = (scored.logprobs_N.exp() - 0.1 * scored.entropy_N).sum()
        leaves = (self.hidden, self.head.weight_VH, self.head.bias_V)
        return [scored.logprobs_N.detach(), scored.entropy_N.detach(), *torch.autograd.grad(loss, leaves)]

    def finished(self, variant: str, lengths: list[int]) -> list[Tensor]:
        """The gradients of the same loss, response by response."""

        def token_gradients(scored: TokenValues, responses: slice, tokens: slice) -> TokenValues:
            return TokenValues(logprobs_N=scored.logprobs_N.exp(), entropy_N=torch.full_like(scored.logprobs_N, -0.1))

        found = head_gradients(
            self.hidden,
            self.head,
            self.targets,
            lengths,
            token_gradients,
            want_entropy=True,
            variant=variant,
            budget_bytes=self.budget_bytes,
        )
        assert found.weight_VH is not None
        assert found.bias_V is not None
        return [found.hidden_NH, found.weight_VH, found.bias_V]


@pytest.mark.parametrize("budget_bytes", [1, 3 * 50 * 8, 2**30])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_operation_on_the_kernels_is_that_on_the_torch_functions(budget_bytes: int, softcap: float | None):
    problem = Problem.of(
        9, 6, 50, torch.float64, budget_bytes=budget_bytes, temperature=0.8, **({"softcap": softcap} if softcap else {})
    )
    reference = problem.differentiated("reference")
    for found, expected in zip(problem.differentiated("triton"), reference, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for found, expected in zip(problem.finished("triton", [4, 0, 5]), reference[2:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@on_gpu
def test_the_operation_at_a_real_size_on_the_gpu():
    problem = Problem.of(2048, 1024, 151_936, torch.bfloat16, budget_bytes=2**28, temperature=20.0)
    chunked = problem.differentiated("chunked")
    for found, expected in zip(problem.differentiated("triton"), chunked, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2 * expected.abs().max().item())
    for found, expected in zip(problem.finished("triton", [1000, 0, 1048]), chunked[2:], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2 * expected.abs().max().item())


@on_gpu
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_a_real_vocabulary_on_the_gpu(softcap: float | None):
    of = case(512, 151_936, dtype=torch.bfloat16, temperature=0.7, softcap=softcap)
    expected, found = of.statistics(rows), of.statistics(triton_rows)
    for name in ("lse_N", "target_N", "mean_N"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-4, msg=name)
    torch.testing.assert_close(of.gradients(triton_rows, expected), of.gradients(rows, expected), rtol=2e-2, atol=1e-6)


@on_gpu
def test_no_temporary_of_the_size_of_the_block():
    of = case(512, 151_936, dtype=torch.bfloat16)
    block = of.logits.clone()
    gradients = TokenValues(logprobs_N=of.at_logprob, entropy_N=of.at_entropy)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = of.statistics(triton_rows)
    triton_rows.logit_gradients_(block, of.targets, found.lse_N, gradients, found.mean_N, temperature=1.0, softcap=None)
    assert torch.cuda.max_memory_allocated() - before < 100_000


@on_gpu
def test_rows_beyond_two_billion_logits():
    tokens, vocabulary = 16_384, 151_936
    last = case(4, vocabulary, dtype=torch.bfloat16)
    logits = torch.zeros(tokens, vocabulary, dtype=torch.bfloat16, device=DEVICE)
    logits[-4:] = last.logits
    targets = torch.zeros(tokens, dtype=torch.int64, device=DEVICE)
    targets[-4:] = last.targets
    found = triton_rows.row_statistics(logits, targets, temperature=1.0, softcap=None, want_mean=False)
    expected = last.statistics(rows)
    torch.testing.assert_close(found.lse_N[-4:], expected.lse_N)
    torch.testing.assert_close(found.target_N[-4:], expected.target_N)
    weights = torch.ones(tokens, device=DEVICE)
    weights[-4:] = last.at_logprob
    triton_rows.logit_gradients_(
        logits, targets, found.lse_N, TokenValues(logprobs_N=weights), None, temperature=1.0, softcap=None
    )
    without = Case(logits=last.logits, targets=last.targets, at_logprob=last.at_logprob, at_entropy=None)
    torch.testing.assert_close(logits[-4:], without.gradients(rows, expected), rtol=2e-2, atol=1e-6)
