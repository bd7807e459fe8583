"""Model directories, snapshots and the files they are made of."""
