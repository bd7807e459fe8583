"""`make architectures`: tiny models of every architecture, three measures of each, and the table in the docs."""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.architectures.measures import CLOSE, greedy_agreement, ratio_of_fresh_data, reopened
from benchmarks.architectures.models import KINDS, make, make_tokenizer
from benchmarks.harness import ROOT, write_results
from driftproof.errors import DriftproofError
from driftproof.runtime.architecture import check_architecture
from driftproof.runtime.resources import quiet_libraries

PAGE = ROOT / "docs" / "architectures.md"
BLOCK = re.compile(r"(<!-- architectures -->\n)(.*?)(<!-- architectures end -->)", re.DOTALL)


@dataclass(slots=True)
class Row:
    """What was found of an architecture: measures, or the sentence that refuses it."""

    refused: str = ""
    right: int = 0
    responses: int = 0
    ratio: float = 0.0
    logits: float = 0.0

    @property
    def good(self) -> bool:
        return not self.refused and self.right == self.responses and self.ratio < CLOSE and self.logits == 0


def measure(names: list[str], directory: Path) -> dict[str, Row]:
    """A row for each architecture that transformers can make here."""
    tokenizer, rows = make_tokenizer(directory), dict[str, Row]()
    pairs = {}
    for name in names:
        row = rows[name] = Row()
        try:
            model = make(name, directory, tokenizer)
            check_architecture(model, decoded=True)
        except DriftproofError as error:
            row.refused = str(error).partition(": ")[2]
            continue
        row.right, row.responses = greedy_agreement(model)
        snapshots = directory / f"snapshots-{len(pairs)}"
        row.ratio = ratio_of_fresh_data(model, snapshots)
        pairs[name] = model, snapshots / "step-00000000"
        print(f"{name}: {row.right}/{row.responses}, {row.ratio:.1e}", flush=True)
    for name, difference in reopened(pairs).items():
        rows[name].logits = difference
    return rows


def tables(rows: dict[str, Row]) -> str:
    """Two tables in Markdown: what trains, and what is refused."""
    trained = [
        f"| {name} | {KINDS[name].note} | {row.right} of {row.responses} | {row.ratio:.0e} | {row.logits:g} |"
        for name, row in rows.items()
        if not row.refused
    ]
    refused = [f"| {name} | {row.refused} |" for name, row in rows.items() if row.refused]
    head = [
        "| architecture | | greedy as generate | ratio from 1 | snapshot's logits from the base's |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *trained, "", "| refused | what `--dry-run` and `check` say |", "|---|---|", *refused])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="some of them; nothing is written then")
    known = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(known.names or list(KINDS), Path(directory))
    print(tables(rows))
    wrong = [name for name, row in rows.items() if not (row.refused or row.good)]
    if not known.names:
        PAGE.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{tables(rows)}\n\n{found[3]}", PAGE.read_text()))
        good = sum(row.good for row in rows.values())
        write_results(
            "architectures", trained=good, wrong=wrong, rows={name: asdict(row) for name, row in rows.items()}
        )
    for name in wrong:
        print(f"wrong: {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
