"""Every input ends in a value or in the room's own error, nothing else. `FUZZ_EXAMPLES=500` makes it longer."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.brought import brought
from tests.fuzz.parsers import Changed, Parser, parsers

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))


ALL = [*parsers(), *brought()]


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.name)
def test_every_input_ends_in_a_value_or_in_the_rooms_own_error(parser: Parser) -> None:
    outcomes = []

    # Always the same inputs, so that the last line is no matter of luck.
    @settings(
        max_examples=EXAMPLES or (15 if parser.slow else 60),
        derandomize=not EXAMPLES,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(parser.inputs)
    def check(value: Any) -> None:
        outcomes.append(parser(value))

    check()
    assert {outcome.accepted for outcome in outcomes} == ({True, False} if parser.refuses else {True})
    assert all(outcome.message for outcome in outcomes if not outcome.accepted)


INDEX_OF_NUMBERS = b'{"weight_map": {"lm_head.weight": true}}'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("overrides", ["--run.seed", "9" * 5000]),
        ("overrides", ["--run.seed", "[" * 5000]),
        ("recipe, bytes", b"[run]\nseed = " + b"9" * 5000),
        ("index of shards", INDEX_OF_NUMBERS),
        ("index of shards", b"[" * 100_000),
        ("index of shards", b'{"weight_map": {"lm_head.weight": ""}}'),
        ("index of shards", b'{"weight_map": {"lm_head.weight": "\\u0000"}}'),
        ("checkpoint", Changed("state.json", b"null")),
        ("checkpoint", Changed("state.json", b'{"format_version": 1, "step": null}')),
        ("model description", Changed("config.json", b'{"model_type": "llama", "attention_bias": null}')),
        ("model description", Changed("generation_config.json", b'{"eos_token_id": ["a"]}')),
        ("engine", Changed("model.safetensors", b"")),
    ],
)
def test_what_once_ended_in_another_error_is_refused(name: str, value: Any) -> None:
    parser = next(parser for parser in ALL if parser.name == name)
    assert parser(value).message
