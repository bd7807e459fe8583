"""What a run shows: live display, summary, tables, picture."""
