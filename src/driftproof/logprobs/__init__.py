"""Hidden states to per-token log-probs, and gradients back, without ever holding the logits of all tokens."""

from driftproof.logprobs.blocks import HeadGradients
from driftproof.logprobs.finish import Finish, finish_responses
from driftproof.logprobs.head import Head, LogprobGradients, TokenLogprobs, VocabShard
from driftproof.logprobs.operation import token_logprobs
from driftproof.logprobs.variants import DEFAULT_BUDGET_BYTES, Variant

__all__ = [
    "DEFAULT_BUDGET_BYTES",
    "Finish",
    "Head",
    "HeadGradients",
    "LogprobGradients",
    "TokenLogprobs",
    "Variant",
    "VocabShard",
    "finish_responses",
    "token_logprobs",
]
