"""Reports of a run: live display, summary, tables, picture."""
