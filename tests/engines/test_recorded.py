from dataclasses import replace
from pathlib import Path

import pytest

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Capabilities, generate
from driftproof.engines.recorded import RecordedEngine
from driftproof.errors import EngineError
from driftproof.tasks import RecordedGroup
from driftproof.types import FinishReason, Prompt

from .tiny import ask, tiny_model, tokens_of

END = 0


def encode(text: str) -> list[int]:
    return [*text.encode(), END]


def group(index: int, *texts: str) -> RecordedGroup:
    rewards = tuple(float(i == 0) for i in range(len(texts)))
    return RecordedGroup(prompt=Prompt(index=index, text="?", answer=""), texts=texts, rewards=rewards)


def test_answers_with_the_recorded_group_whatever_was_asked_for():
    engine = RecordedEngine([group(0, "ab", "c"), group(1, "d", "e", "")], encode)
    answers = generate(engine, [ask(1, [5], samples=2, max_tokens=1), ask(0, [5], samples=4)])
    assert tokens_of(answers[0]) == [[100, 0], [101, 0], [0]]
    assert tokens_of(answers[1]) == [[97, 98, 0], [99, 0]]
    assert [response.reward for response in answers[0]] == [1, 0, 0]
    assert all(r.finish_reason is FinishReason.STOP and r.behavior_logprobs is None for r in answers[0])
    assert all(response.retokenized for group_answers in answers for response in group_answers)
    assert engine.collect() == []


def test_what_was_cut_off_has_no_end():
    engine = RecordedEngine([replace(group(0, "ab", "c"), unfinished=frozenset({0}))], encode)
    (responses,) = generate(engine, [ask(0, [5])])
    assert tokens_of(responses) == [[97, 98], [99, 0]]
    assert [response.finish_reason for response in responses] == [FinishReason.LENGTH, FinishReason.STOP]


def test_says_what_it_cannot_do_and_load_does_nothing(tmp_path: Path):
    engine = RecordedEngine([group(4, "x")], encode)
    assert engine.capabilities == Capabilities(logprobs=False, follows_weights=False)
    engine.load(tmp_path / "nowhere")
    with pytest.raises(EngineError, match=r"no behavior log-probs; choose .*asympo"):
        engine.submit(ask(4, [1], want_logprobs=True))
    with pytest.raises(EngineError, match=r"prompt 3.*no responses are recorded"):
        engine.submit(ask(3, [1]))


def test_keys_under_way_are_unique_and_room_shrinks():
    engine = RecordedEngine([group(0, "x")], encode)
    room = engine.room
    engine.submit(ask(0, [1], samples=8))
    assert engine.room == room - 8
    with pytest.raises(EngineError, match="unique"):
        engine.submit(ask(0, [1]))
    assert len(engine.collect()) == 1
    engine.submit(ask(0, [1]))
    engine.close()
    assert engine.collect() == []
    assert engine.room == room


def live_engine() -> EmbeddedEngine:
    return EmbeddedEngine(tiny_model(), slots=4)


def mixed(live: EmbeddedEngine) -> RecordedEngine:
    return RecordedEngine([group(3, "ab", "c")], lambda text: [ord(letter) - 90 for letter in text] + [END], live)


def test_other_prompts_are_answered_by_the_live_engine() -> None:
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


def test_with_a_live_engine_it_can_what_both_can(tmp_path: Path) -> None:
    engine = mixed(live_engine())
    assert engine.capabilities == Capabilities(logprobs=False, follows_weights=True)
    with pytest.raises(EngineError, match="no behavior log-probs"):
        engine.submit(ask(3, [5], want_logprobs=True))
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path)


def test_recorded_groups_take_no_room_of_the_live_engine() -> None:
    engine = mixed(live_engine())
    room = engine.room
    engine.submit(ask(3, [5], samples=2))
    assert engine.room == room
    engine.submit(ask(0, [5], samples=2))
    assert engine.room == room - 2
    engine.close()
