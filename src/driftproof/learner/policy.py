"""A Hugging Face causal language model as the policy that is trained.

Guarantees: the log-probs of `score` are those of the model's own forward pass, which is compared once, when the policy
is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from driftproof.errors import ModelError
from driftproof.learner.packing import MicroBatch, pack
from driftproof.logprobs import Head, TokenBuffer, TokenGradients, TokenValues, head_gradients, token_logprobs
from driftproof.types import FinishReason, Group, Response, Tokens, Verdict
from driftproof.weights.files import read_shapes
from driftproof.weights.models import UNTRUSTED, attention_reach, inspect_model, readable
from driftproof.weights.names import file_state


class Policy:
    """A model that scores packed responses."""

    def __init__(
        self, model: Any, *, temperature: float = 1.0, dtype: torch.dtype = torch.float32, value_head: bool = False
    ) -> None:
        """`temperature` is the sampling temperature; under `dtype` bfloat16 the forward pass runs in autocast.

        A value head is a linear layer on the last hidden states that starts at 0.

        Raises:
            ModelError: the model's own log-probs differ from those of `score`.
        """
        # Dropout would make the log-probs those of another policy than the one that sampled.
        self.model = model.eval()
        self.decoder = self.model.get_decoder()
        if self.decoder is self.model:
            self.decoder = self.model.model
        self.head = self.model.get_output_embeddings()
        config = self.model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.logit_scale = 1.0
        """The factor by which the model multiplies its logits, before it caps them."""
        self._reach = attention_reach(config) if config._attn_implementation == "sdpa" else 0
        self._stored: frozenset[str] = frozenset()
        """Names in the files that the model was opened from."""
        self.value_head: nn.Linear | None = None
        if value_head:
            self.value_head = nn.Linear(self.head.weight.shape[1], 1, device=self.device)
            for parameter in self.value_head.parameters():
                nn.init.zeros_(parameter)
        # The model's own forward pass knows neither temperature nor autocast.
        self.temperature, self.dtype = 1.0, torch.float32
        self._check_scores()
        self.temperature, self.dtype = temperature, dtype

    @classmethod
    def open(
        cls, path: Path, *, device: str, temperature: float = 1.0, bfloat16: bool = False, value_head: bool = False
    ) -> Policy:
        """The policy of a model directory, weights in float32.

        Raises:
            ModelError: see `inspect_model`; also weights that are missing or of another shape.
        """
        from transformers import AutoModelForCausalLM

        inspect_model(path)
        with readable(f"{path}: the weights cannot be loaded"):
            model, loading = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **UNTRUSTED
            )
        if loading["missing_keys"]:
            raise ModelError(f"{path}: the weights lack {sorted(loading['missing_keys'])[:3]}")
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        policy = cls(model.to(device), temperature=temperature, dtype=dtype, value_head=value_head)
        policy._stored = frozenset(read_shapes(path))
        return policy

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def can_share_prompts(self, groups: Sequence[Group]) -> bool:
        """Whether responses may stand behind one prompt: by a kernel that takes any mask, where no layer's window is
        shorter than a prompt with its response."""
        longest = (len(group.prompt_tokens) + int(group.response_lengths.max(initial=0)) for group in groups)
        return max(longest, default=0) <= self._reach

    @property
    def vocabulary(self) -> int:
        """Token ids are below it; `score` and `backward` trust that they are."""
        return len(self.head.weight)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by name: the model's, then the value head's."""
        head = {} if self.value_head is None else dict(self.value_head.named_parameters(prefix="value_head"))
        return dict(self.model.named_parameters()) | head

    def state(self) -> dict[str, Tensor]:
        """The model's weights by the names that it computes with, as checkpoints hold them; not copied.

        Tied weights have several names; the value head's are not among them.
        """
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    def published(self) -> dict[str, Tensor]:
        """The model's weights as snapshots hold them: by the names of the files that it was opened from."""
        return file_state(self.model, self._stored)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights that `state` gave; of tied weights one name is enough.

        Raises:
            ModelError: names or shapes that are not this model's; the weights are as they were.
        """
        own, trained = self.state(), self.trained_parameters()
        shapes = {name: tensor.shape for name, tensor in own.items() if name in state or name in trained}
        found = {name: tensor.shape for name, tensor in state.items()}
        if different := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
            raise ModelError(f"{different[:3]} are missing, not known, or of another shape")
        self.model.load_state_dict(state, strict=False)

    def score(self, micro_batch: MicroBatch, *, want_entropy: bool = False) -> TokenValues:
        """Log-probs of the response tokens of a micro-batch at the sampling temperature, differentiable."""
        hidden_NH, targets_N = self._hidden_states(micro_batch), micro_batch.targets_N
        head = self._output_layer()
        scored = token_logprobs(hidden_NH, head, targets_N, want_entropy=want_entropy, check_targets=False)
        return replace(scored, values_N=self._values(hidden_NH))

    def backward(
        self, micro_batch: MicroBatch, token_gradients: TokenGradients, *, want_entropy: bool = False
    ) -> tuple[TokenValues, TokenValues]:
        """Add the gradient of a loss of what `score` returns; these values, and the loss's derivatives by them.

        `token_gradients` is called for some whole responses at a time, each once, and says how the loss depends on what
        was scored of their tokens; the logits are made once for score and gradient, and never all at a time.
        """
        hidden_NH, head, targets_N = self._hidden_states(micro_batch), self._output_layer(), micro_batch.targets_N
        values_N = self._values(hidden_NH)
        scored, gradients = (TokenBuffer(len(targets_N), self.device) for _ in range(2))

        def differentiate(part: TokenValues, responses: slice, tokens: slice) -> TokenValues:
            if values_N is not None:
                part = replace(part, values_N=values_N[tokens].detach())
            found = token_gradients(part, responses, tokens)
            scored.put(tokens, part)
            gradients.put(tokens, found)
            return found

        of_head = head_gradients(
            hidden_NH.detach(),
            head,
            targets_N,
            micro_batch.lengths,
            differentiate,
            want_entropy=want_entropy,
            check_targets=False,
        )
        tensors = hidden_NH, head.weight_VH, head.bias_V, values_N
        known = of_head.hidden_NH, of_head.weight_VH, of_head.bias_V, gradients.all().values_N
        pairs = [(x, dx) for x, dx in zip(tensors, known, strict=True) if x is not None and dx is not None]
        torch.autograd.backward([x for x, _ in pairs], [dx for _, dx in pairs])
        return scored.all(), gradients.all()

    def _hidden_states(self, micro_batch: MicroBatch) -> Tensor:
        """[N, H] in the dtype of the forward pass: the states that predict each response token."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output = self.decoder(
                input_ids=micro_batch.input_ids,
                position_ids=micro_batch.position_ids,
                attention_mask=micro_batch.attention_mask,
                use_cache=False,
            )
        hidden_NH: Tensor = output.last_hidden_state.flatten(0, 1)[micro_batch.predict_N]
        return hidden_NH.to(self.dtype)

    def _output_layer(self) -> Head:
        # cap tanh(scale logits / cap) / T is (cap / scale) tanh(logits / (cap / scale)) / (T / scale).
        scale = self.logit_scale
        return Head(
            weight_VH=self.head.weight,
            bias_V=self.head.bias,
            temperature=self.temperature / scale,
            softcap=None if self.softcap is None else self.softcap / scale,
        )

    def _values(self, hidden_NH: Tensor) -> Tensor | None:
        return None if self.value_head is None else self.value_head(hidden_NH.float()).squeeze(-1)

    @torch.no_grad()
    def _check_scores(self) -> None:
        """Compare with the model's own logits, and find their scale: it may compute them in a way of its own."""
        name = type(self.model).__name__
        groups = [_group([0, 1, 1], [[0, 1, 1, 0, 0, 1], [1, 0]]), _group([1], [[0, 0, 1]])]
        with readable(f"{name} cannot be trained, for driftproof does not know how to compute its log-probs"):
            own = torch.cat([self._own_logprobs(group, response) for group in groups for response in group.split()])
            found = {scale: self._logprobs(groups, scale) for scale in _scales(self.model.config.get_text_config())}
        self.logit_scale = min(found, key=lambda scale: float((own - found[scale]).abs().max()))
        ours = found[self.logit_scale]
        if not torch.allclose(own, ours, atol=1e-3):
            raise ModelError(
                f"{name} computes its log-probs in a way that driftproof does not reproduce (they are off by "
                f"{float((own - ours).abs().max()):.2g} nats); they would be wrong, so it is refused"
            )

    def _logprobs(self, groups: list[Group], logit_scale: float) -> Tensor:
        self.logit_scale = logit_scale
        micro_batches = pack(groups, token_budget=1 << 10, share_prompts=self.can_share_prompts(groups))
        logprobs_N = torch.zeros(sum(len(micro_batch.targets_N) for micro_batch in micro_batches))
        for micro_batch in micro_batches:
            logprobs_N[micro_batch.tokens_N] = self.score(micro_batch.to(self.device)).logprobs_N.cpu()
        return logprobs_N

    def _own_logprobs(self, group: Group, response: Tokens) -> Tensor:
        ids = torch.tensor(np.append(group.prompt_tokens, response), dtype=torch.int64, device=self.device)
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0, -len(response) - 1 : -1]
        logprobs: Tensor = logits.float().log_softmax(-1).gather(-1, ids[-len(response) :, None]).squeeze(-1)
        return logprobs.cpu()


def _group(prompt: list[int], responses: list[list[int]]) -> Group:
    arrays = [np.array(tokens, np.int32) for tokens in responses]
    written = [Response(tokens=tokens, finish_reason=FinishReason.STOP) for tokens in arrays]
    return Group.from_responses(0, np.array(prompt, np.int32), written, [Verdict(reward=0.0)] * len(written))


def _scales(config: Any) -> list[float]:
    """Factors that a model may multiply its logits by; whether by a setting or by its inverse, only trying tells."""
    names = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    values = [value for name in names if isinstance(value := getattr(config, name, None), int | float) and value > 0]
    return [1.0, *(factor for value in values for factor in (float(value), 1 / value))]
