from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from driftproof.errors import ModelError
from driftproof.learner.learner import Learner
from driftproof.learner.packing import pack
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.logprobs import TokenValues
from driftproof.objectives import build
from tests.groups import make_group

from .tiny import own_logprobs, tiny_model

GROUP = make_group([3, 4, 5], [[6, 7, 8], [9, 2], [1]])


def score(policy: Policy, **options: bool) -> torch.Tensor:
    (micro_batch,) = pack([GROUP], token_budget=999, share_prompts=policy.can_share_prompts([GROUP]))
    return policy.score(micro_batch, **options).logprobs_N


def test_temperature_divides_the_logits():
    model = tiny_model()
    hot = score(Policy(model, temperature=2.0))
    logits = model(input_ids=torch.tensor([[3, 4, 5, 6, 7, 8]])).logits[0, 2:-1] / 2.0
    expected = logits.log_softmax(-1).gather(1, torch.tensor([[6], [7], [8]]))[:, 0]
    torch.testing.assert_close(hot[:3], expected, rtol=1e-5, atol=1e-5)


def test_entropy_is_that_of_the_distribution_at_the_temperature():
    policy = Policy(tiny_model(), temperature=0.5)
    (micro_batch,) = pack([GROUP], token_budget=999)
    entropy_N = policy.score(micro_batch, want_entropy=True).entropy_N
    logits = policy.model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1] / 0.5
    assert entropy_N is not None
    torch.testing.assert_close(entropy_N[0], torch.distributions.Categorical(logits=logits).entropy())


def test_bfloat16_rounds_but_returns_float32():
    policy = Policy(tiny_model(), dtype=torch.bfloat16)
    exact, rounded = score(Policy(tiny_model())), score(policy)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.2


@pytest.mark.parametrize("seed", range(4))
def test_the_check_is_not_disturbed_by_the_rounding_of_bfloat16(seed: int):
    """Large logits are off by tenths in bfloat16."""
    model = tiny_model(seed=seed, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    Policy(model, dtype=torch.bfloat16)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2", "granite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_is_the_gradient_through_score(architecture: str, dtype: torch.dtype):
    """Of a loss of log-probs, entropies and values; tied and untied heads, capped logits."""
    policy = Policy(tiny_model(architecture), temperature=0.7, dtype=dtype, value_head=True)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    (micro_batch,) = pack([GROUP], token_budget=999, share_prompts=policy.can_share_prompts([GROUP]))[:1]
    scored = policy.score(micro_batch, want_entropy=True)
    assert scored.entropy_N is not None
    assert scored.values_N is not None
    weights_N = torch.linspace(-1, 1, len(scored.logprobs_N))
    loss = weights_N @ scored.logprobs_N + weights_N.square() @ scored.entropy_N + scored.values_N.square().sum()
    expected = torch.autograd.grad(loss, list(policy.trained_parameters().values()))
    seen: list[torch.Tensor] = []

    def token_gradients(part: TokenValues, responses: slice, tokens: slice) -> TokenValues:
        seen.append(part.logprobs_N)
        assert part.values_N is not None
        assert not part.values_N.requires_grad
        return TokenValues(
            logprobs_N=weights_N[tokens], entropy_N=weights_N[tokens].square(), values_N=2 * part.values_N
        )

    policy.backward(micro_batch, token_gradients, want_entropy=True)
    torch.testing.assert_close(torch.cat(seen), scored.logprobs_N.detach(), rtol=1e-5, atol=1e-5)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for parameter, gradient in zip(policy.trained_parameters().values(), expected, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() <= tolerance * gradient.norm() + 1e-5


def test_dropout_is_off():
    policy = Policy(tiny_model("gpt2").train())
    torch.testing.assert_close(score(policy), score(policy), rtol=0, atol=0)


def test_eager_attention_takes_no_mask_so_prompts_are_not_shared():
    model = tiny_model(attn_implementation="eager")
    policy = Policy(model)
    assert not policy.can_share_prompts([GROUP])
    torch.testing.assert_close(score(policy)[3:5], own_logprobs(model, [3, 4, 5], [9, 2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [6, 5])
def test_prompts_are_shared_as_long_as_no_window_is_shorter_than_prompt_and_response(window: int):
    model = tiny_model("mistral", sliding_window=window)
    policy = Policy(model)
    assert policy.can_share_prompts([GROUP]) == (window == 6)
    expected = [own_logprobs(model, [3, 4, 5], response) for response in ([6, 7, 8], [9, 2], [1])]
    torch.testing.assert_close(
        Learner(policy, build("asympo"), LearnerSettings(), steps=1).score([GROUP]).logprobs_N,
        torch.cat(expected).detach(),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("architecture", ["granite", "cohere", "hyperclovax"])
def test_logits_that_the_model_scales(architecture: str):
    """Two of them divide and multiply by settings of the same name."""
    model = tiny_model(architecture)
    policy = Policy(model)
    assert policy.logit_scale != 1
    torch.testing.assert_close(score(policy)[3:5], own_logprobs(model, [3, 4, 5], [9, 2]), rtol=1e-5, atol=1e-5)


def test_a_model_that_computes_its_logits_in_a_way_of_its_own_is_refused():
    model = tiny_model()
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden) * 2
    with pytest.raises(ModelError, match="Qwen3ForCausalLM computes its log-probs in a way that driftproof does not"):
        Policy(model)


def test_open_reads_a_directory_in_float32(tiny_model_dir: Path):
    policy = Policy.open(tiny_model_dir, device="cpu", temperature=0.7)
    assert policy.temperature == 0.7
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.testing.assert_close(
        score(Policy.open(tiny_model_dir, device="cpu"))[:3], own_logprobs(model, [3, 4, 5], [6, 7, 8])
    )


def test_weights_that_are_missing_or_of_another_shape_are_refused(tiny_model_dir: Path, tmp_path: Path):
    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({key: tensor for key, tensor in state.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"the weights lack \['{name}'\]"):
        Policy.open(tmp_path, device="cpu")
    save_file(state | {name: state[name][:, :-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="the weights cannot be loaded"):
        Policy.open(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ModelError, match="the weights cannot be loaded"):
        Policy.open(tmp_path, device="cpu")


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_a_state_is_taken_by_another_policy(architecture: str):
    policy, other = Policy(tiny_model(architecture, seed=1)), Policy(tiny_model(architecture))
    state = {name: tensor.clone() for name, tensor in policy.state().items()}
    # Of tied weights one name is enough.
    state = {name: tensor for name, tensor in state.items() if name in policy.trained_parameters()}
    other.load_state(state)
    assert torch.equal(score(other), score(policy))


@pytest.mark.parametrize("change", [{"more": torch.zeros(1)}, {"model.norm.weight": torch.zeros(3)}, None])
def test_a_state_of_another_model_changes_nothing(change: dict[str, torch.Tensor] | None):
    policy, expected = Policy(tiny_model()), score(Policy(tiny_model()))
    state = {name: tensor.clone() for name, tensor in tiny_model(seed=1).state_dict().items()}
    if change is None:
        del state["model.norm.weight"]
    with pytest.raises(ModelError, match="are missing, not known, or of another shape"):
        policy.load_state(state | (change or {}))
    assert torch.equal(score(policy), expected)


def test_trained_parameters_have_names():
    policy = Policy(tiny_model(), value_head=True)
    names = [name for name, _ in policy.model.named_parameters()]
    assert list(policy.trained_parameters()) == [*names, "value_head.weight", "value_head.bias"]
    assert "lm_head.weight" not in names
    assert set(policy.state()) == {*names, "lm_head.weight"}
