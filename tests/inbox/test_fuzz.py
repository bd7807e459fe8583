"""The routes against requests made from their own OpenAPI description, in order and out of order: never a 500.

`FUZZ_EXAMPLES=500` makes it longer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from driftproof.weights import Publisher
from tests.inbox.live import TOKEN, app_of, make_run

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'driftproof[dev]'")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 15))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Any]:
    run = make_run(tmp_path_factory.mktemp("fuzz"), tiny_model_dir)
    Publisher(run / "snapshots", tiny_model_dir).publish(0, {"w": torch.zeros(1)})
    with app_of(run, max_bytes=100_000) as (inbox, app):
        inbox.lease("anonymous", 12)
        yield schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Authorization": f"Bearer {TOKEN}"})


def answers(operation: Any) -> Counter[int]:
    """Ask for an operation in ways that its description allows, and in ways that it does not; the status codes."""
    found: Counter[int] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        response = case.call_and_validate(
            headers={"Authorization": f"Bearer {TOKEN}"},
            # A description cannot say all: that a dispatch was leased, or that a group has as many responses as asked.
            excluded_checks=[openapi_checks.positive_data_acceptance],
        )
        found[response.status_code] += 1

    check()
    return found


def test_every_answer_is_as_described(api: Any) -> None:
    # The plug-in's own parametrization does not know this pytest; the loop does what it would.
    operations = [found.ok() for found in api.get_all_operations()]
    assert {operation.label for operation in operations} >= {"GET /prompts", "POST /groups", "GET /weights/latest"}
    for operation in operations:
        found = answers(operation)
        print(operation.label, dict(found))
        assert found
        assert max(found) < 500
