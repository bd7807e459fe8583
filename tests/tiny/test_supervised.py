import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftproof.tasks import Task, arithmetic, running_sums
from driftproof.tiny.supervised import RIGHT, demonstrate, noise_of, score_answers, with_noise
from driftproof.tiny.tokenizers import character_tokenizer
from driftproof.types import Prompt

CHARACTERS = character_tokenizer()


@pytest.mark.parametrize("text", ["1+2=", "47+85=", "9+90="])
def test_scores_are_those_of_token_by_token_decoding(random_model: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    model = AutoModelForCausalLM.from_pretrained(random_model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(8)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=4, do_sample=False, suppress_tokens=[0, 1])[0, ids.shape[1] :]
    # So that a random model has an answer it gives: what it writes, up to a character that we call the stop token.
    tokenizer.eos_token = tokenizer.decode(written[-1:])
    answers = [tokenizer.decode(written[:-1]), tokenizer.decode(written), "132"]
    prompts = [Prompt(index=i, text=text, answer=answer) for i, answer in enumerate(answers)]
    scores = score_answers(model, tokenizer, prompts)
    assert scores.greedy.tolist()[::2] == [True, False]
    for prompt, probability, greedy in zip(prompts, scores.probability, scores.greedy, strict=True):
        expected, best = _probability_token_by_token(model, tokenizer, prompt)
        assert probability.item() == pytest.approx(expected, rel=1e-4)
        assert greedy.item() == best


def _probability_token_by_token(model: Any, tokenizer: Any, prompt: Prompt) -> tuple[float, bool]:
    ids, total, best = tokenizer.encode(prompt.text), 0.0, True
    for token in [*tokenizer.encode(prompt.answer), tokenizer.eos_token_id]:
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        total += logprobs[token].item()
        best &= logprobs.argmax().item() == token
        ids.append(token)
    return math.exp(total), best


def test_noise_hits_digits_of_the_answer_alone() -> None:
    torch.manual_seed(0)
    prompts = [Prompt(index=0, text="47+85=", answer="132")] * 4000
    clean = demonstrate(CHARACTERS, prompts)
    digits = torch.tensor(CHARACTERS.convert_tokens_to_ids(list("0123456789")))
    noisy = with_noise(clean.tokens, clean.answer, digits, 0.15)
    changed = (noisy != clean.tokens).float().mean(0)
    assert changed[:6].max() == 0
    assert changed[9] == 0, "the stop token stays"
    # A random digit is the right one a tenth of the time.
    torch.testing.assert_close(changed[6:9], torch.full((3,), 0.15 * 0.9), atol=0.02, rtol=0)
    assert torch.isin(noisy[:, 6:9], digits).all()


@pytest.mark.parametrize("task", [arithmetic(), arithmetic(digits=9), running_sums(), running_sums(most_terms=30)])
def test_noise_leaves_the_same_share_of_short_and_long_answers_right(task: Task) -> None:
    torch.manual_seed(0)
    clean = demonstrate(CHARACTERS, task.train[:5000])
    digits = torch.tensor(CHARACTERS.convert_tokens_to_ids(list("0123456789")))
    noisy = with_noise(clean.tokens, clean.answer, digits, noise_of(task.train))
    right = (noisy == clean.tokens).all(1).float().mean().item()
    # Unequal lengths leave a little more right than equal ones would.
    assert right == pytest.approx(RIGHT, abs=0.03)


def test_noise_of_two_digit_addition_and_of_answers_without_digits() -> None:
    assert noise_of(arithmetic().train) == 0.15
    assert noise_of([Prompt(index=0, text="a?", answer="b")]) == 0.0
    assert noise_of([Prompt(index=i, text="a?", answer="b1"[: i // 9 + 1]) for i in range(10)]) == 1.0
