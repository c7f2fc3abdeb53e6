"""Whether the coordinator answers, and calls that outlast its absence.

Only the session reconnects and backs off. Whatever else talks to the coordinator tries again when the session next
hears from it, so a coordinator that comes back is not met by a crowd, and nothing sleeps blindly.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from relay.errors import from_rpc, is_transient

T = TypeVar("T")


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


async def insist(contact: Contact, call: Callable[[], Awaitable[T]]) -> T:
    """The answer to `call`, however often the line breaks before it comes.

    Raises the RelayError that the coordinator answers with, or the RpcError that trying again cannot help. A
    TimeoutError of the call's own is a broken line too.
    """
    for tries in itertools.count():
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if (refusal := from_rpc(error)) is not None:
                raise refusal from error
            if not is_transient(error):
                raise
        except TimeoutError:  # a stalled transfer
            pass
        if tries:  # the first break may be one connection's own; after a second wait for a sign of life
            await contact.sign()
    raise AssertionError("never reached")
