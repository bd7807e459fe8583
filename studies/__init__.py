"""The study behind docs/results.md: its grids, objectives taken apart, claims checked, and the page."""
