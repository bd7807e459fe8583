"""Do the mathematical verifiers judge as a person would? Judged pairs of gold answer and response say it.

    python -m benchmarks.cases tests/cases/answers.jsonl

Each line is `{"verifier": "math", "gold": "18", "response": "so \\\\boxed{18}", "expected": 1}`. Prints the share of
pairs judged as expected, the false acceptances, the median time of a verdict and every pair judged otherwise. The exit
code is 1 where fewer than 97% agree, or more than 1% are falsely accepted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from driftproof.verify import Item, Verifier, build

ROOT = Path(__file__).parent.parent
OWN = ROOT / "tests" / "cases" / "answers.jsonl"
BESIDE = ROOT.parent / "shared" / "data" / "cases" / "verifier_pairs.jsonl"
"""More pairs, where they lie beside the repository."""
LEAST_AGREEMENT, MOST_FALSE = 0.97, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A pair, and how it was judged."""

    name: str
    item: Item
    expected: float
    reward: float | None
    microseconds: float


def judge(rows: Sequence[dict[str, object]]) -> list[Judged]:
    """Every pair by the verifier that it names, one at a time; a pair without a verdict has the reward None."""
    verifiers: dict[str, Verifier] = {}
    judged = []
    for number, row in enumerate(rows, start=1):
        name = str(row.get("verifier", "math"))
        verifier = verifiers.setdefault(name, build(name)) if name not in verifiers else verifiers[name]
        item = Item(response=str(row["response"]), answer=str(row["gold"]), prompt="")
        started = time.perf_counter()
        (verdict,) = verifier.score([item])
        microseconds = (time.perf_counter() - started) * 1e6
        expected = float(str(row["expected"]))
        kind = f"{row.get('id', number)} {row.get('kind', '')}".strip()
        judged.append(Judged(name=kind, item=item, expected=expected, reward=verdict.reward, microseconds=microseconds))
    for verifier in verifiers.values():
        verifier.close()
    return judged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="*", help="files of judged pairs, JSON lines")
    arguments = parser.parse_args()
    passed = True
    for path in arguments.pairs or [OWN, *([BESIDE] if BESIDE.exists() else [])]:
        if not path.exists():
            print(f"{path} is missing; give a file of judged pairs", file=sys.stderr)
            return 2
        judged = judge([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()])
        wrong = [one for one in judged if one.reward != one.expected]
        false = [one for one in wrong if one.reward]
        for one in wrong:
            print(f"{one.name}: {one.reward} for {one.item.response[-120:]!r}, gold {one.item.answer!r}")
        agreement = 1 - len(wrong) / len(judged)
        median = statistics.median(one.microseconds for one in judged)
        print(f"{path.name}: {len(judged)} pairs, agreement {agreement:.3f} (at least {LEAST_AGREEMENT}), ", end="")
        print(f"{len(false)} falsely accepted (at most {MOST_FALSE:.0%}), median {median:.0f} microseconds a verdict")
        passed = passed and agreement >= LEAST_AGREEMENT and len(false) <= MOST_FALSE * len(judged)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
