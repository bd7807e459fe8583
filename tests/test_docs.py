"""Every Python block of README and docs runs, a page's blocks in turn; and the tables say what the code does."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from driftproof.metrics import health
from driftproof.metrics.names import ROWS
from driftproof.objectives import OBJECTIVES, Objective, Responses, build
from driftproof.objectives.behavior_corrected import BehaviorCorrected

ROOT = Path(__file__).parent.parent
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python" in path.read_text()
]
OBJECTIVES_PAGE = (ROOT / "docs" / "objectives.md").read_text()
HORIZON = 8
"""Tokens, for objectives that need one."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path) -> None:
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL):
        # Empty lines before it, so that a failure names the page's line.
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("*/*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if target.startswith("http"):
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


def test_each_promise_names_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    promises = re.split(r"^## ", text, flags=re.MULTILINE)[1:7]
    assert [promise[:2] for promise in promises] == ["1.", "2.", "3.", "4.", "5.", "6."]
    for promise in promises:
        named = re.findall(r"`(tests/[^`]+)`", promise.partition("*Held by*")[2])
        assert named, promise.splitlines()[0]
        assert all((ROOT / path).exists() for path in named), named


def anchors(page: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table whose header line starts so."""
    lines = page[page.index(f"\n{header}") :].strip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def default_of(field: dataclasses.Field[Any]) -> Any:
    assert field.default is not dataclasses.MISSING
    return field.default


def defaults(objective: type[Objective]) -> dict[str, Any]:
    return {field.name: default_of(field) for field in dataclasses.fields(objective)}


def make(name: str, **fields: Any) -> Objective:
    summed = OBJECTIVES[name].aggregation == "seq-mean-token-sum-norm"
    return build(name, **({"horizon": HORIZON} if summed else {}), **fields)


OBJECTIVE_ROWS = {code(row[0])[0]: row for row in rows(OBJECTIVES_PAGE, "| name | needs | own fields |")}


def test_every_objective_has_its_row_and_section() -> None:
    assert list(OBJECTIVE_ROWS) == list(OBJECTIVES)
    assert re.findall(r"^### (\S+)$", OBJECTIVES_PAGE, flags=re.MULTILINE) == list(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_of_objectives_say_what_the_classes_do(name: str) -> None:
    objective = OBJECTIVES[name]
    _, needs, own, aggregation, source = OBJECTIVE_ROWS[name]
    assert code(needs) == sorted(make(name).needs)
    assert code(needs) or needs == "nothing"
    shared = defaults(BehaviorCorrected).keys()
    assert tomllib.loads("\n".join(code(own))) == {
        field: value for field, value in defaults(objective).items() if field not in shared
    }
    assert code(aggregation) == [objective.aggregation]
    assert aggregation.endswith("fixed") == is_refused(name, aggregation="token-mean")
    links = re.findall(r"\[(arXiv ([\d.]+)[^\]]*)\]\(https://arxiv.org/abs/([\d.]+)\)", source)
    assert links
    docstring = " ".join((objective.__doc__ or "").split())
    for text, number, address in links:
        assert number == address
        assert text in docstring


def is_refused(name: str, **fields: Any) -> bool:
    try:
        build(name, **fields)
    except ValueError:
        return True
    return False


def test_shared_fields_are_those_of_the_classes() -> None:
    told = [code(row[0])[0] for row in rows(OBJECTIVES_PAGE, "| field | meaning |")]
    with_default = tomllib.loads("\n".join(field for field in told if "=" in field))
    expected = defaults(BehaviorCorrected)
    assert [field.split(" = ")[0] for field in told] == list(expected)
    # The aggregation's default is the objective's, and a horizon has none.
    del expected["aggregation"], expected["horizon"]
    assert with_default == expected


def step(**channels: torch.Tensor) -> Responses:
    logprobs_RT = torch.tensor([[-0.5, -1.0], [-2.0, -0.1]], requires_grad=True)
    return Responses.from_padded(
        logprobs_RT, torch.ones(2, 2), torch.tensor([0.5, -0.5]), rewards_R=torch.tensor([1.0, 0.0]), **channels
    )


def test_health_metrics_are_those_of_the_code() -> None:
    batch = step(behavior_logprobs=torch.full((2, 2), -1.0), entropy=torch.ones(2, 2))
    emitted = set(health.step_health(batch, torch.ones(4)))
    assert {name for section in ("health", "drift") for row in ROWS[section] for name in row.names} == emitted


def test_objective_metrics_are_those_of_the_code() -> None:
    channel = torch.full((2, 2), -1.0)
    batch = step(
        **dict.fromkeys(("behavior_logprobs", "proximal_logprobs", "reference_logprobs"), channel), values=channel
    )
    variants = [make(name, kl=0.1) for name in OBJECTIVES]
    variants += [make("asympo", stable=True), make("grpo", correction="mask")]
    emitted = {f"objective/{name}" for objective in variants for name in objective(batch).metrics}
    assert {name for row in ROWS["objective"] for name in row.names} == emitted
