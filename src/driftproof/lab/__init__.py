"""The staleness lab: how old the data is, as a dial, and what follows from it."""
