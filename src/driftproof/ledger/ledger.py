"""A ledger with all its faces over one connection, for who is both sides at once."""

from pathlib import Path
from typing import Self

from driftproof.ledger.leases import LocalLeases
from driftproof.ledger.records import Plan
from driftproof.ledger.steps import Steps
from driftproof.ledger.store import create_store


class Ledger(LocalLeases, Steps):
    """Reader, leases and steps together: a run's supervisor, a run without overlap, a script."""

    @classmethod
    def create(cls, path: Path, plan: Plan) -> Self:
        """Make a new ledger; a LedgerError where there is one already, or the plan cannot be carried out."""
        create_store(path, plan)
        return cls(path)
