"""The channel to a coordinator: which failures are retried, for how long, and what the error says in the end.

A failure of the transport (and what a proxy makes of a dead backend) is retried with exponential backoff and full
jitter; an error that the coordinator itself reports never is. Before the first answer the time for retries is short,
since a wrong address should be reported at once; after it the channel waits for a coordinator that is being restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from random import Random
from typing import TypeVar

import grpc

from relay import errors
from relay.backoff import Backoff

Request = TypeVar("Request")
Response = TypeVar("Response")

_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)
#: The details of gRPC's error when a connection ends during a call.
_BROKEN = {"Internal error from Core", "Stream removed (Socket closed)", "Socket closed", "Connection reset by peer"}
DATABASE_AWAY = "the database is out of reach"  #: part of the error of a coordinator that cannot reach its database
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  #: seconds, at most, before the first retry and before any


class CoordinatorUnreachable(Exception):
    """The coordinator did not answer; the message names the address, the failure and what to do."""

    def __init__(self, address: str, why: str, *, answered_before: bool = False) -> None:
        advice = (
            "it answered before: perhaps it is being restarted"
            if answered_before
            else "start one with `relayctl up`, or name yours with --coordinator or RELAY_COORDINATOR"
        )
        if DATABASE_AWAY in why:
            super().__init__(f"the coordinator at {address} answers, but its database does not; try again")
        else:
            super().__init__(f"cannot reach the coordinator at {address} ({why}); {advice}")


class CallFailed(Exception):
    """The server refused with an error that is not Relay's: it may be no coordinator, or of another version."""


class CoordinatorChannel:
    """One gRPC channel, the secret that is sent with each call, and how long calls are retried."""

    def __init__(
        self, address: str, secret: str = "", *, connect_timeout: float = 2.0, retry_timeout: float = 20.0
    ) -> None:
        self.address = address
        self.grpc_channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
        self.connect_timeout = connect_timeout  #: seconds of retrying before the coordinator has ever answered
        self.retry_timeout = retry_timeout  #: seconds of retrying after its last answer
        self.answered = False  #: whether the coordinator has ever answered
        self.on_disconnect: Callable[[str], None] = lambda why: None  #: called once each time contact is lost

    async def close(self) -> None:
        """Close the gRPC channel."""
        await self.grpc_channel.close()

    async def call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, seconds: float = 15.0
    ) -> Response:
        """Call a unary method; raises RelayError when it is refused, CoordinatorUnreachable when there is no answer."""

        async def call_once() -> Response:
            return await method(request, timeout=seconds, metadata=self.metadata)

        return await self.retry(call_once)

    async def retry(self, operation: Callable[[], Awaitable[Response]]) -> Response:
        """Return what the operation returns, calling it again for as long as only the transport fails."""
        retries = Retries(self)
        while True:
            try:
                response = await operation()
            except grpc.aio.AioRpcError as error:
                await retries.wait_after_error(error)
            else:
                self.answered = True
                return response

    async def resume_stream(self, open_stream: Callable[[], AsyncIterable[Response]]) -> AsyncIterator[Response]:
        """Yield every message of a stream across broken connections; `open_stream` opens it where it broke off."""
        retries = Retries(self)
        while True:
            try:
                async for message in open_stream():
                    self.answered = True
                    retries = Retries(self)
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                await retries.wait_after_error(error)


class Retries:
    """The retries of one operation, which end when it succeeds, is refused, or its time is up."""

    def __init__(self, channel: CoordinatorChannel) -> None:
        self._channel = channel
        self._since = asyncio.get_running_loop().time()
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, Random())

    async def wait_after_error(self, error: grpc.aio.AioRpcError) -> None:
        """Return when it is time to try again, or raise the error that the caller should see instead."""
        if refusal := errors.from_rpc(error):
            raise refusal from None
        if not errors.is_transient(error):
            raise CallFailed(f"{error.code().name}: {error.details()}") from None
        await self.wait(_describe(error))

    async def wait(self, why: str) -> None:
        """Return when it is time to try again; raises CoordinatorUnreachable when the time for retries is up."""
        channel = self._channel
        spent = asyncio.get_running_loop().time() - self._since
        if spent >= (channel.retry_timeout if channel.answered else channel.connect_timeout):
            raise CoordinatorUnreachable(channel.address, why, answered_before=channel.answered) from None
        if self._backoff.failures == 0 and channel.answered:
            channel.on_disconnect(why)
        await asyncio.sleep(self._backoff.next_pause())


def _describe(error: grpc.aio.AioRpcError) -> str:
    """Describe a transport's failure in a few words, without gRPC's own wording."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = (error.details() or error.code().name).strip()
    if details in _BROKEN:
        return "the connection broke"
    if error.code() is grpc.StatusCode.INTERNAL:
        return details
    return details.rpartition(": ")[2].strip(" ]") or details
