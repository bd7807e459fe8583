"""Looking after a ledger: check, repair, prune."""
