"""Hidden states to per-token log-probs."""

from driftproof.logprobs.reference import TokenLogprobs, token_logprobs

__all__ = ["TokenLogprobs", "token_logprobs"]
