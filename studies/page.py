"""A page about several grids with their figures put in: docs/results.md.

    python -m studies.page docs/results.md

Guarantees: only what stands between a directive and its end is written, the rest of the page is left as it is; the same
results give the same page. A directive that cannot be followed is refused, and nothing is written.

    <!-- lab: claims -->                     the claims and their verdicts
    <!-- lab: claim 3 -->                    the checks of one claim, with their figures
    <!-- lab: table GRID VIEW -->            final accuracies
    <!-- lab: setting GRID -->               what was run
    <!-- lab: detection GRID [GRID ...] -->  how well alarms announce collapses
    <!-- lab: differences GRID VIEW LABEL --> final accuracies minus those of the objective LABEL
    <!-- lab: picture GRID accuracy|staleness|imbalance VIEW -->
    <!-- lab end -->
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from driftproof.errors import ConfigError, DriftproofError
from driftproof.lab.experiment import Result
from driftproof.lab.grid import View, age_name
from driftproof.lab.pictures import draw_accuracy, draw_imbalance, draw_staleness
from driftproof.lab.report import (
    escaped,
    markdown_table,
    missing_lines,
    result_rows,
    setting_text,
)
from driftproof.lab.runner import read_results
from driftproof.lab.settings import LabConfig
from driftproof.lab.summary import missing_cells, summarize
from studies.claims import Finding, Study, difference, judge
from studies.detection import CANDIDATES, detect, detection_rows

BLOCK = re.compile(r"(<!-- lab: (?P<directive>.+?) -->\n)(?P<text>.*?)(<!-- lab end -->)", re.DOTALL)
PICTURES: Mapping[str, tuple[Callable[[LabConfig, Sequence[Result], Path], None], str]] = {
    "accuracy": (draw_accuracy, "Accuracy over steps"),
    "staleness": (draw_staleness, "Final accuracy against staleness"),
    "imbalance": (draw_imbalance, "Scale imbalance over steps"),
}

WORDS: Mapping[str, tuple[int, float]] = {
    "claims": (0, 0),
    "claim": (1, 1),
    "table": (2, 2),
    "setting": (1, 1),
    "detection": (1, math.inf),
    "differences": (3, math.inf),
    "picture": (3, 3),
}
"""Words that follow a directive's name, at least and at most."""


def write_page(page: Path, studies: Mapping[str, Study]) -> list[Path]:
    """Fill in the page from grids by their names; the files written, pictures in `images` beside the page.

    Raises:
        ConfigError: no such page, a directive that is unknown or names a grid, view or objective that is not there.
    """
    if not page.is_file():
        raise ConfigError(f"there is no page {page}")
    blocks = _Blocks(studies, page.parent / "images")
    text = BLOCK.sub(lambda found: found[1] + blocks.fill(found["directive"]) + found[4], page.read_text())
    for draw in blocks.drawings.values():
        draw()
    page.write_text(text)
    return [page, *blocks.drawings]


def read_studies(labs: Path) -> dict[str, Study]:
    """Every grid under a directory, by its name.

    Raises:
        ConfigError: results of other settings than those in a grid's config.toml.
    """
    studies = {}
    for recipe in sorted(labs.glob("*/config.toml")):
        config = LabConfig.written_in(recipe.parent)
        studies[config.run.name] = Study(config=config, results=read_results(config, recipe.parent))
    return studies


class _Blocks:
    """The blocks of a page, made of the studies."""

    def __init__(self, studies: Mapping[str, Study], images: Path) -> None:
        self._studies = studies
        self._images = images
        self._findings = judge(studies)
        self.drawings: dict[Path, Callable[[], None]] = {}
        """Pictures to be drawn once the whole page is known to be fine."""

    def fill(self, directive: str) -> str:
        name, *words = directive.split()
        known: dict[str, Callable[..., list[str]]] = {
            "claims": self._claims,
            "claim": self._claim,
            "table": self._table,
            "setting": self._setting,
            "detection": self._detection,
            "differences": self._differences,
            "picture": self._picture,
        }
        if name not in known:
            raise ConfigError(f"unknown directive {directive!r} on the page; valid: {', '.join(known)}")
        least, most = WORDS[name]
        if not least <= len(words) <= most:
            raise ConfigError(f"directive {directive!r} has {len(words)} words after its name; see studies.page")
        lines = known[name](*words)
        return "\n".join(["", *lines, "", ""])

    def _claims(self) -> list[str]:
        rows = [["claim", "source", "evidence", "verdict"]]
        rows += [
            [f"{finding.claim.number}. {finding.claim.text}", finding.claim.source, _evidence(finding), finding.verdict]
            for finding in self._findings
        ]
        return markdown_table(rows)

    def _claim(self, number: str) -> list[str]:
        found = [finding for finding in self._findings if str(finding.claim.number) == number]
        if not found:
            raise ConfigError(f"there is no claim {number}; valid: 1 to {len(self._findings)}")
        return [f"* {'✓' if check.holds else '✗'} {escaped(check.text)}" for check in found[0].checks]

    def _table(self, grid: str, view: str) -> list[str]:
        study, chosen = self._study(grid), self._view(grid, view)
        summaries = [summary for summary in summarize(study.results) if summary.view == chosen]
        return markdown_table(result_rows(study.config, chosen, summaries))

    def _setting(self, grid: str) -> list[str]:
        study = self._study(grid)
        return [setting_text(study.config), *missing_lines(study.config, missing_cells(study.config, study.results))]

    def _detection(self, *grids: str) -> list[str]:
        results = [result for grid in grids for result in self._study(grid).results]
        return markdown_table(detection_rows([detect(results, limits) for limits in CANDIDATES]))

    def _differences(self, grid: str, view: str, *words: str) -> list[str]:
        study, chosen, other = self._study(grid), self._view(grid, view), " ".join(words)
        labels = [objective.label or objective.name for objective in study.config.lab.objectives]
        if other not in labels:
            raise ConfigError(f"grid {grid!r} has no objective {other!r}; valid: {', '.join(labels)}")
        ages = study.ages(chosen)
        rows = [["objective", *(age_name(study.config, age) for age in ages)]]
        for label in labels:
            found = [difference(study, chosen, label, other, age) for age in ages]
            rows.append([label, *("-" if one is None else str(one) for one in found)])
        return markdown_table(row for row in rows if row[0] != other)

    def _picture(self, grid: str, what: str, view: str) -> list[str]:
        study, chosen = self._study(grid), self._view(grid, view)
        if what not in PICTURES:
            raise ConfigError(f"unknown picture {what!r} on the page; valid: {', '.join(PICTURES)}")
        draw, title = PICTURES[what]
        results = [result for result in study.results if result.cell.view == chosen]
        path = self._images / f"lab-{grid}-{view}-{what}.png"
        self.drawings[path] = lambda: draw(study.config, results, path)
        return [f"![{title}: {grid}, view {view}](images/{path.name})"]

    def _study(self, grid: str) -> Study:
        if grid not in self._studies:
            there = ", ".join(self._studies) or "none"
            raise ConfigError(f"the page needs the grid {grid!r}, which has not been run; there are: {there}")
        return self._studies[grid]

    def _view(self, grid: str, view: str) -> View:
        views = list(dict.fromkeys(result.cell.view for result in self._study(grid).results))
        for there in views:
            if there == view:
                return there
        raise ConfigError(f"grid {grid!r} has no view {view!r}; valid: {', '.join(views)}")


def _evidence(finding: Finding) -> str:
    holding = sum(check.holds for check in finding.checks)
    return f"{finding.evidence}; {holding} of {len(finding.checks)} checks hold" if finding.checks else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill in a page; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m studies.page", description="Fill in a page about grids.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--labs", type=Path, default=Path("labs"), metavar="DIR", help="where the grids lie")
    known = parser.parse_args(arguments)
    try:
        for path in write_page(known.page, read_studies(known.labs)):
            print(path)
    except DriftproofError as error:
        print(f"studies.page: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
