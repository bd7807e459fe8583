"""Two engines behind one: each is asked for its own prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.mixed import MixedEngine
from driftproof.engines.protocol import Capabilities, generate
from driftproof.engines.recorded import RecordedEngine
from driftproof.errors import EngineError
from driftproof.tasks import RecordedGroup
from driftproof.types import Prompt

from .tiny import ask, tiny_model, tokens_of


def mixed(live: EmbeddedEngine) -> MixedEngine:
    group = RecordedGroup(prompt=Prompt(index=3, text="?", answer=""), texts=("ab", "c"), rewards=(1.0, 0.0))
    recorded = RecordedEngine({3: group}, lambda text: [ord(letter) - 90 for letter in text] + [0])
    return MixedEngine(live, recorded, first_recorded=3)


def live_engine() -> EmbeddedEngine:
    return EmbeddedEngine(tiny_model(), slots=4)


def test_every_prompt_is_answered_by_its_own_engine() -> None:
    engine = mixed(live_engine())
    live, recorded, other = generate(engine, [ask(0, [5], samples=2), ask(3, [5], samples=2), ask(2, [7])])
    assert tokens_of(recorded) == [[7, 8, 0], [9, 0]]
    assert [response.reward for response in recorded] == [1.0, 0.0]
    assert [tokens_of(live), tokens_of(other)] == [
        tokens_of(responses) for responses in generate(live_engine(), [ask(0, [5], samples=2), ask(2, [7])])
    ]
    assert [[r.retokenized for r in responses] for responses in (live, recorded, other)] == [
        [False, False], [True, True], [False],
    ]  # fmt: skip
    assert engine.collect() == []


def test_it_can_what_both_can(tmp_path: Path) -> None:
    engine = mixed(live_engine())
    assert engine.capabilities == Capabilities(logprobs=False, follows_weights=True)
    with pytest.raises(EngineError, match="no behavior log-probs"):
        engine.submit(ask(3, [5], want_logprobs=True))
    with pytest.raises(EngineError, match="no responses are recorded for this prompt"):
        engine.submit(ask(4, [5]))
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path)


def test_what_is_recorded_takes_no_room() -> None:
    engine = mixed(live_engine())
    room = engine.room
    engine.submit(ask(3, [5], samples=2))
    assert engine.room == room
    engine.submit(ask(0, [5], samples=2))
    assert engine.room == room - 2
    engine.close()
