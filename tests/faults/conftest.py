"""The deployments of the end-to-end tests, to be broken."""

from tests.end_to_end.conftest import deployment, fleet

__all__ = ["deployment", "fleet"]
