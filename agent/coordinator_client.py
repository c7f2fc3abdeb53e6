"""The line to the coordinator: connections to it, whether it answers, and calls that outlast its absence.

There is one connection each for heartbeats, events and artifacts, so that none waits behind another: two gRPC channels
to one address share a socket unless each has a subchannel pool of its own, and a heartbeat then waited half a minute
behind a backlog of events.

Only the session reconnects and backs off. Whatever else talks to the coordinator tries again when the session next
hears from it, so a coordinator that comes back is not met by a crowd, and nothing sleeps blindly.
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
    "grpc.enable_retries": 0,  # the session reconnects, `insist` tries again; nobody else does
    "grpc.http2.max_pings_without_data": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.max_receive_message_length": 64 << 20,  # one beat may bring several runs, each with thousands of inputs
}


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Where the coordinator is and what to present to it."""

    address: str  #: host:port
    secret: str | None = field(default=None, repr=False)
    keepalive: float = 10.0  #: seconds between transport pings; a dead line is noticed within twice that
    deployment: Callable[[], str] = str  #: the id of the one that is meant; empty before the first welcome

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be given with every call. Another deployment's coordinator takes none: it knows nothing of our leases."""
        pairs = {"authorization": f"Bearer {self.secret}" if self.secret else "", DEPLOYMENT: self.deployment()}
        return tuple((key, value) for key, value in pairs.items() if value)

    def dial(self) -> grpc.aio.Channel:
        """A connection of its own; made when it is first used."""
        pings = {
            "grpc.keepalive_time_ms": int(self.keepalive * 1000),
            "grpc.keepalive_timeout_ms": int(self.keepalive * 500),
            "grpc.http2.ping_timeout_ms": int(self.keepalive * 500),
        }
        return grpc.aio.insecure_channel(self.address, options=list((_OPTIONS | pings).items()))


class Contact:
    """Signs of life from the coordinator. `now` is a clock in seconds that also counts while the host sleeps."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._next = asyncio.Event()
        self.last = now()  #: when it was last heard

    def heard(self) -> None:
        """It said something."""
        self.last = self._now()
        self._next.set()
        self._next = asyncio.Event()

    async def sign(self) -> None:
        """Until it says something from now on."""
        await self._next.wait()

    @property
    def silence(self) -> float:
        """Seconds since it was last heard."""
        return self._now() - self.last


def extract_refusal(error: grpc.aio.AioRpcError) -> RelayError | None:
    """What the coordinator itself refused; None when the line failed, or something passing stood in the way.

    That is a proxy; or what the session has to set right, for which all else waits: a wrong secret, a wrong database,
    an attempt's first write that a failover lost.
    """
    refusal = from_rpc(error)
    if refusal is not None and not isinstance(refusal, Unauthenticated | DeploymentForeign | StartMissing):
        return refusal
    if not is_transient(error):
        log.warning("call refused", code=error.code().name, reason=error.details())
    return None


async def call_with_retry(contact: Contact, call: Callable[[], Awaitable[T]]) -> T:
    """The answer to `call`, however often the line breaks before it comes.

    Raises the RelayError that the coordinator answers with. Any other failure is the line's, a proxy's page for a
    coordinator that is being moved too, and so is a TimeoutError of the call's own.
    """
    for tries in itertools.count():
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if (refusal := extract_refusal(error)) is not None:
                raise refusal from error
        except TimeoutError:  # a stalled transfer
            pass
        if tries:  # the first break may be one connection's own; after a second wait for a sign of life
            await contact.sign()
    raise AssertionError("never reached")
