"""Requests to an engine: the same dispatch number asks for the same thing, whoever makes the request."""

from dataclasses import replace

import numpy as np

from driftproof.types import Prompt, Request, Sampling, Tokens


def make_request(
    dispatch: int, prompt: Prompt, prompt_tokens: Tokens, *, samples: int, sampling: Sampling, want_logprobs: bool
) -> Request:
    """The request of the n-th dispatch; its randomness depends on the run's seed and on n alone."""
    seed = int(np.random.SeedSequence([sampling.seed, dispatch]).generate_state(1, np.uint64)[0] >> 1)
    return Request(
        key=dispatch,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        samples=samples,
        sampling=replace(sampling, seed=seed),
        want_logprobs=want_logprobs,
    )
