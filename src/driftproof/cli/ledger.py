"""`driftproof ledger`: check, repair or prune a run's ledger."""

from __future__ import annotations

import argparse
from pathlib import Path

from driftproof.cli.commands import Commands, command
from driftproof.config import Config
from driftproof.errors import ConfigError


def add(commands: Commands) -> None:
    ledger = commands.add_parser("ledger", help="verify, repair or prune a run's ledger", allow_abbrev=False)
    actions = ledger.add_subparsers(required=True, metavar="ACTION")
    checking = command(actions, "check", _check, "whether a run is what it says it is")
    checking.add_argument("run", type=Path)
    checking.add_argument("--json", action="store_true", help="print the findings as JSON")
    repair = command(actions, "repair", _repair, "save what can be saved of a damaged ledger")
    repair.add_argument("run", type=Path)
    repair.add_argument("--output", type=Path, metavar="FILE", help="a new ledger; the run's own is left in place")
    prune = command(actions, "prune", _prune, "forget what old groups hold, and free its space")
    prune.add_argument("run", type=Path)
    prune.add_argument("--keep-steps", type=int, required=True, metavar="N", help="keep groups of the last N steps")


def _check(known: argparse.Namespace, _: list[str]) -> int:
    import json
    from dataclasses import asdict

    from driftproof.ledger.maintenance.check import check_run

    found = check_run(known.run)
    if known.json:
        print(json.dumps(asdict(found), indent=2))
        return 1 if found.findings else 0
    for line in found.findings or [f"{found.groups:,} groups, {found.steps:,} steps: nothing is wrong"]:
        print(line)
    return 1 if found.findings else 0


def _repair(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.ledger.maintenance.repair import repair_run
    from driftproof.ledger.records import Plan

    def plan_anew() -> Plan:
        from driftproof.runtime.preflight import preflight

        return preflight(Config.written_in(known.run))

    done = repair_run(known.run, known.output, plan_anew)
    if done is None:
        print(f"nothing is wrong with the ledger of {known.run}; it is left alone")
        return 0
    for line in done.lines():
        print(line)
    return 0


def _prune(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.ledger.maintenance.prune import prune_run

    if known.keep_steps < 0:
        raise ConfigError(f"--keep-steps is {known.keep_steps}; it must be 0 or more")
    done = prune_run(known.run, known.keep_steps)
    print(f"{done.groups:,} groups pruned, up to step {done.step:,} of {done.steps:,}; {done.freed:,} bytes freed")
    return 0
