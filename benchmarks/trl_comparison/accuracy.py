"""The accuracy both sides of the comparison are measured by: exact, so that no sampling noise decides who is first."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from driftproof.tiny.supervised import score_answers
from driftproof.types import Prompt


def exact_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> float:
    """Mean probability, over `prompts`, that a response sampled at temperature 1 is the answer and the stop token."""
    return score_answers(model, tokenizer, prompts).probability.mean().item()
