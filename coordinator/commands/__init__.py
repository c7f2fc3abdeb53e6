"""The use cases: one command is one transaction, without network calls inside."""
