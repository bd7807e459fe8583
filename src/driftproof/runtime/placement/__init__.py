"""Where the processes of a run live: the protocol, and processes on this machine."""
