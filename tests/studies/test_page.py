"""A page's figures come from its grids, and the rest of it stays as it is."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from driftproof.errors import ConfigError
from studies.claims import Study
from studies.page import main, write_page
from tests.lab.grids import make_config, make_results


@pytest.fixture
def studies() -> dict[str, Study]:
    config = make_config("naive", "asympo", staleness=[0, 16])
    config = config.model_copy(update={"run": replace(config.run, name="collapse")})
    return {"collapse": Study(config=config, results=make_results(config))}


def block(directive: str, text: str = "old\n") -> str:
    return f"<!-- lab: {directive} -->\n{text}<!-- lab end -->\n"


def filled(tmp_path: Path, studies: dict[str, Study], directive: str) -> list[str]:
    """The lines that a directive puts in."""
    page = tmp_path / "page.md"
    page.write_text(block(directive))
    write_page(page, studies)
    first, *lines, last = page.read_text().splitlines()
    assert (first, last) == (f"<!-- lab: {directive} -->", "<!-- lab end -->")
    return [line for line in lines if line]


def test_only_what_is_between_the_marks_is_written(tmp_path: Path, studies: dict[str, Study]) -> None:
    page = tmp_path / "page.md"
    blocks = block("setting collapse"), block("table collapse given", "")
    page.write_text("# Title\n\nWords.\n\n{}\nMore.\n{}End.\n".format(*blocks))
    assert write_page(page, studies) == [page]
    text = page.read_text()
    assert text.startswith("# Title\n\nWords.\n\n<!-- lab: setting collapse -->\n\nModel tiny, task arithmetic")
    assert "old" not in text
    assert "\nMore.\n" in text
    assert text.endswith("<!-- lab end -->\nEnd.\n")
    write_page(page, studies)
    assert page.read_text() == text


def test_tables(tmp_path: Path, studies: dict[str, Study]) -> None:
    header, rule, naive, asympo = filled(tmp_path, studies, "table collapse given")
    assert (header, rule) == ("| objective | age 0 | age 16 |", "| --- | --- | --- |")
    assert naive.startswith("| naive | 0.")
    assert naive.endswith("✗2/2 |")
    assert "✗" not in asympo
    lines = filled(tmp_path, studies, "differences collapse given naive")
    assert len(lines) == 3
    assert re.fullmatch(r"\| asympo \| -0\.00 \[.*\] \| \+0\.\d\d \[\+0\.\d\d, \+0\.\d\d\] \|", lines[2])
    announced = filled(tmp_path, studies, "detection collapse")
    assert announced[2].startswith("| health/positive\\_nll above 1.25 of its first 10 steps or reward below 0.75")


def test_claims_and_their_checks(tmp_path: Path, studies: dict[str, Study]) -> None:
    table = filled(tmp_path, studies, "claims")
    assert len(table) == 2 + 6
    assert "checks hold | partly |" in table[2] or "checks hold | reproduced |" in table[2]
    assert table[5].endswith("|  | not run |")
    checks = filled(tmp_path, studies, "claim 1")
    assert checks
    assert all(line.startswith(("* ✓ collapse, given, age 16: ", "* ✗ collapse, given, age 16: ")) for line in checks)
    assert filled(tmp_path, studies, "claim 4") == []


def test_pictures_are_drawn_beside_the_page(tmp_path: Path, studies: dict[str, Study]) -> None:
    (tmp_path / "images").mkdir()
    [line] = filled(tmp_path, studies, "picture collapse staleness given")
    assert line == "![Final accuracy against staleness: collapse, view given](images/lab-collapse-given-staleness.png)"
    assert (tmp_path / "images" / "lab-collapse-given-staleness.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("tables collapse given", "unknown directive 'tables collapse given' on the page; valid: claims, claim, table"),
        ("table collapse", "directive 'table collapse' has 1 words after its name"),
        ("table alpha given", "needs the grid 'alpha', which has not been run; there are: collapse"),
        ("table collapse tuned", "grid 'collapse' has no view 'tuned'; valid: given"),
        ("differences collapse given spo", "grid 'collapse' has no objective 'spo'; valid: naive, asympo"),
        ("picture collapse loss given", "unknown picture 'loss' on the page; valid: accuracy, staleness, imbalance"),
        ("claim 7", "there is no claim 7; valid: 1 to 6"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_nothing_written(
    tmp_path: Path, studies: dict[str, Study], directive: str, message: str
) -> None:
    page = tmp_path / "page.md"
    text = block("picture collapse staleness given") + block(directive)
    page.write_text(text)
    with pytest.raises(ConfigError) as caught:
        write_page(page, studies)
    assert message in str(caught.value)
    assert page.read_text() == text
    assert list(tmp_path.iterdir()) == [page]


def test_the_command_reads_the_grids_there_are(
    studies: dict[str, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "labs" / "any"
    grid.mkdir(parents=True)
    (grid / "config.toml").write_text(studies["collapse"].config.to_toml())
    page = tmp_path / "page.md"
    page.write_text(block("setting collapse"))
    assert main([str(page), "--labs", str(tmp_path / "labs")]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "Missing: 8 of 8 runs of the view 'given'." in page.read_text()
    page.write_text(block("setting other"))
    assert main([str(page), "--labs", str(tmp_path / "labs")]) == 2
    assert "needs the grid 'other', which has not been run; there are: collapse" in capsys.readouterr().err


def test_a_page_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no page"):
        write_page(tmp_path / "none.md", {})
