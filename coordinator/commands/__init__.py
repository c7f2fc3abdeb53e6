"""Use cases: one command, one transaction, no network inside."""
