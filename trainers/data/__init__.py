"""The rows that a run trains on: found, read, recognised, checked, mixed and cached."""
