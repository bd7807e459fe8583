"""The routes against requests made from their own OpenAPI description, in order and out of order: never a 500.

`FUZZ_EXAMPLES=500` makes it longer.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from driftproof.weights.snapshots import Publisher
from tests.inbox.live import TOKEN, app_of, make_run

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'driftproof[dev]'")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

WITHOUT_INPUT = ("GET /status", "GET /weights/latest")
"""Nothing about these can be wrong but the token."""
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 8))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Any]:
    run = make_run(tmp_path_factory.mktemp("fuzz"), tiny_model_dir)
    Publisher(run / "snapshots", tiny_model_dir).publish(0, {"w": torch.zeros(1)})
    with app_of(run, max_bytes=100_000) as (inbox, app):
        inbox.lease("anonymous", 12)
        yield schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Authorization": f"Bearer {TOKEN}"})


def answers(operation: Any, mode: Any) -> Counter[int]:
    """Ask for an operation in ways that its description allows, or in ways that it does not; the status codes."""
    found: Counter[int] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call_and_validate(
            headers={"Authorization": f"Bearer {TOKEN}"},
            # A description cannot say all: that a dispatch was leased, or that a group has as many responses as asked.
            # And what nobody asked for (another header, another query parameter) is passed over, as is usual.
            excluded_checks=[openapi_checks.positive_data_acceptance, openapi_checks.negative_data_rejection],
        )
        found[response.status_code] += 1

    check()
    return found


def test_every_answer_is_as_described(api: Any) -> None:
    # The plug-in's own parametrization does not know this pytest; the loop does what it would.
    operations = [found.ok() for found in api.get_all_operations()]
    assert {operation.label for operation in operations} >= {"GET /prompts", "POST /groups", "GET /weights/latest"}
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for operation, mode in itertools.product(operations, modes):
        if mode is modes[1] and operation.label in WITHOUT_INPUT:
            continue
        found = answers(operation, mode)
        print(operation.label, mode.name, dict(found))
        assert found
        assert max(found) < 500
