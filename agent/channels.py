"""Connections to the coordinator: one each for heartbeats, events and artifacts, so that none waits behind another.

Two gRPC channels to one address share a socket unless each has a subchannel pool of its own; a heartbeat then waited
half a minute behind a backlog of events.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

CALL_TIMEOUT = 20.0  #: seconds that a unary call may take

_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,  # the session reconnects, `contact.insist` tries again; nobody else does
    "grpc.http2.max_pings_without_data": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
}


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Where the coordinator is and what to present to it."""

    address: str  #: host:port
    secret: str | None = field(default=None, repr=False)
    keepalive: float = 10.0  #: seconds between transport pings; a dead line is noticed within twice that

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be given with every call."""
        return (("authorization", f"Bearer {self.secret}"),) if self.secret else ()

    def dial(self) -> grpc.aio.Channel:
        """A connection of its own; made when it is first used."""
        pings = {
            "grpc.keepalive_time_ms": int(self.keepalive * 1000),
            "grpc.keepalive_timeout_ms": int(self.keepalive * 500),
            "grpc.http2.ping_timeout_ms": int(self.keepalive * 500),
        }
        return grpc.aio.insecure_channel(self.address, options=list((_OPTIONS | pings).items()))
