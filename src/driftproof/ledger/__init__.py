"""The durable store of a run."""

from driftproof.ledger.ledger import FINISHED, RUNNING, STOPPING, Lease, Ledger, LedgerError, Plan, Record, Status

__all__ = ["FINISHED", "RUNNING", "STOPPING", "Lease", "Ledger", "LedgerError", "Plan", "Record", "Status"]
