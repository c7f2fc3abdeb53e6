"""Connections to the coordinator, when it last replied, and calls that are retried while it is away.

Heartbeats, events and artifacts have a connection each, so that none waits behind another: two gRPC channels to one
address share a socket unless each has a subchannel pool of its own, and a heartbeat has waited half a minute behind a
backlog of events.

Only the session reconnects and backs off. Every other caller retries when the session next receives a message, so a
coordinator that comes back is not met by a crowd, and nothing sleeps blindly.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from relay.errors import (
    DEPLOYMENT,
    DeploymentForeign,
    RelayError,
    StartMissing,
    Unauthenticated,
    from_rpc,
    is_transient,
)
from relay.logs import get_logger

log = get_logger(__name__)
T = TypeVar("T")
CALL_TIMEOUT = 20.0  #: seconds that a unary call may take

_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,  # only the session reconnects, and only `call_with_retry` retries
    "grpc.http2.max_pings_without_data": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.max_receive_message_length": 64
    << 20,  # one heartbeat reply may bring several runs, each with thousands of inputs
}


@dataclass(frozen=True, slots=True)
class Coordinator:
    """The coordinator's address, and the credentials that calls to it carry."""

    address: str  #: host:port
    secret: str | None = field(default=None, repr=False)
    keepalive: float = 10.0  #: seconds between transport pings; a dead connection is noticed within twice that
    deployment: Callable[[], str] = str  #: the id of the deployment that is meant; empty before the first welcome

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call. Another deployment's coordinator, which does not know our leases, refuses it."""
        pairs = {"authorization": f"Bearer {self.secret}" if self.secret else "", DEPLOYMENT: self.deployment()}
        return tuple((key, value) for key, value in pairs.items() if value)

    def dial(self) -> grpc.aio.Channel:
        """Return a channel with a connection of its own, which is made when it is first used."""
        pings = {
            "grpc.keepalive_time_ms": int(self.keepalive * 1000),
            "grpc.keepalive_timeout_ms": int(self.keepalive * 500),
            "grpc.http2.ping_timeout_ms": int(self.keepalive * 500),
        }
        return grpc.aio.insecure_channel(self.address, options=list((_OPTIONS | pings).items()))


class Contact:
    """When the coordinator last replied. `now` is a clock in seconds that also counts while the host sleeps."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._next = asyncio.Event()
        self.last_reply_at = now()  #: when the last message came

    def record_reply(self) -> None:
        """Note that a message came."""
        self.last_reply_at = self._now()
        self._next.set()
        self._next = asyncio.Event()

    async def wait_for_reply(self) -> None:
        """Wait until the next message comes."""
        await self._next.wait()

    @property
    def seconds_without_reply(self) -> float:
        """Seconds since the last message came."""
        return self._now() - self.last_reply_at


def extract_refusal(error: grpc.aio.AioRpcError) -> RelayError | None:
    """Return the error when the coordinator itself refused the call, and None when a retry may help.

    A retry may help when the connection failed, when a proxy answered, and when the session must first correct what
    is wrong: a wrong secret, a wrong database, an attempt's first write that a failover lost.
    """
    refusal = from_rpc(error)
    if refusal is not None and not isinstance(refusal, Unauthenticated | DeploymentForeign | StartMissing):
        return refusal
    if not is_transient(error):
        log.warning("call refused", code=error.code().name, reason=error.details())
    return None


async def call_with_retry(contact: Contact, call: Callable[[], Awaitable[T]]) -> T:
    """Return the answer to `call`, and retry it while the connection breaks before the answer comes.

    Raises the RelayError that the coordinator answers with. Every other failure is retried: a broken connection, a
    proxy's error page while the coordinator moves, a TimeoutError of the call's own.
    """
    for tries in itertools.count():
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if (refusal := extract_refusal(error)) is not None:
                raise refusal from error
        except TimeoutError:  # a stalled transfer
            pass
        if tries:  # the first failure may be one connection's own; after a second one wait for the coordinator
            await contact.wait_for_reply()
    raise AssertionError("never reached")
