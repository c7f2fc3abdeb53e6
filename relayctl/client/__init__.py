"""The public Python client: typed and async. relayctl has no other."""

from relayctl.client.client import RelayClient

__all__ = ["RelayClient"]
