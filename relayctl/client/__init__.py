"""The public Python client: typed and asynchronous, and the only one that relayctl itself has.

`RelayClient` speaks to a coordinator. `submission` submits run files as `relayctl submit` does, `copies` fetches
checkpoints and results from wherever they lie, `context` finds the coordinator that relayctl would use.
"""

from relayctl.client.artifacts import PullFailed, SendFailed
from relayctl.client.channel import CallFailed, CoordinatorUnreachable
from relayctl.client.client import RelayClient

__all__ = ["CallFailed", "CoordinatorUnreachable", "PullFailed", "RelayClient", "SendFailed"]
