"""Hidden states to per-token log-probs, and gradients back, without ever holding the logits of all tokens."""

from driftproof.logprobs.fused import head_gradients
from driftproof.logprobs.head import Head
from driftproof.logprobs.operation import token_logprobs
from driftproof.logprobs.values import TokenBuffer, TokenGradients, TokenValues
from driftproof.logprobs.variants import DEFAULT_BUDGET_BYTES

__all__ = [
    "DEFAULT_BUDGET_BYTES",
    "Head",
    "TokenBuffer",
    "TokenGradients",
    "TokenValues",
    "head_gradients",
    "token_logprobs",
]
