"""Placement of a run's processes: the protocol, and processes on this machine."""
