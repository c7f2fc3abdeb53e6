"""One attempt at a run on this host, from its assignment to its completion."""
