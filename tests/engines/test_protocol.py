import pytest

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import generate
from driftproof.errors import EngineError

from .tiny import ask, random_prompts, tiny_model


def test_generate_answers_in_the_order_of_the_requests():
    requests = [
        ask(10 - i, prompt, samples=1 + i, max_tokens=9 - i) for i, prompt in enumerate(random_prompts([4, 2, 9, 1]))
    ]
    answers = generate(EmbeddedEngine(tiny_model(), slots=3), requests)
    assert [len(responses) for responses in answers] == [1, 2, 3, 4]
    assert [len(responses[0].tokens) for responses in answers] == [9, 8, 7, 6]
    assert generate(EmbeddedEngine(tiny_model(), slots=3), []) == []


def test_generate_refuses_equal_keys_and_passes_refusals_on():
    engine = EmbeddedEngine(tiny_model(), slots=3)
    with pytest.raises(ValueError, match="unique"):
        generate(engine, [ask(1, [1]), ask(1, [2])])
    with pytest.raises(EngineError, match="vocabulary"):
        generate(engine, [ask(1, [1000])])
