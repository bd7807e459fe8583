"""A seeded storm on the quickstart: kills and faults, and a count of what became of every group."""
