"""The store: all SQL of the coordinator, as free functions that take a connection and never commit."""
