"""The line to a coordinator: what is tried again, for how long, and what is said when it stays dead.

A transport's failure (and what a proxy makes of a dead backend) is tried again with full jitter; a domain error never
is. Before the first answer patience is short, since a wrong address should be told at once; after it a coordinator that
is being restarted is waited for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc

from relay import errors

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
#: What gRPC says when the connection ends under a call.
_BROKEN = {"Internal error from Core", "Stream removed (Socket closed)", "Socket closed", "Connection reset by peer"}
DATABASE_AWAY = "the database is out of reach"  #: what a coordinator says then
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Unreachable(Exception):
    """The coordinator did not answer; the message says which address was tried, how it failed and what to do."""

    def __init__(self, address: str, why: str, *, before: bool = False) -> None:
        todo = "start one with `relayctl up`, or name yours with --coordinator or RELAY_COORDINATOR"
        lost = "it answered before: perhaps it is being restarted"
        if DATABASE_AWAY in why:
            super().__init__(f"the coordinator at {address} answers, but its database does not; try again")
        else:
            super().__init__(f"cannot reach the coordinator at {address} ({why}); {lost if before else todo}")


class CallFailed(Exception):
    """The other side refused in a way that is not Relay's own: perhaps it is no coordinator, or another version."""


class Line:
    """One connection, with the secret that goes along and the patience that it has."""

    def __init__(self, address: str, secret: str = "", *, first: float = 2.0, patience: float = 20.0) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
        self.first = first  #: seconds of trying before anything was ever answered
        self.patience = patience  #: seconds of trying after the last answer
        self.answered = False
        self.on_trouble: Callable[[str], None] = lambda why: None  #: told once for each stretch of silence

    async def close(self) -> None:
        await self.channel.close()

    async def call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, seconds: float = 15.0
    ) -> Response:
        """The answer; RelayError when it is refused, Unreachable when there is none."""

        async def once() -> Response:
            return await method(request, timeout=seconds, metadata=self.metadata)

        return await self.retried(once)

    async def retried(self, once: Callable[[], Awaitable[Response]]) -> Response:
        """What `once` gives, tried again as long as only the line fails."""
        trial = Trial(self)
        while True:
            try:
                response = await once()
            except grpc.aio.AioRpcError as error:
                await trial.failed(error)
            else:
                self.answered = True
                return response

    async def resumed(self, start: Callable[[], AsyncIterable[Response]]) -> AsyncIterator[Response]:
        """Every message of a stream; `start` opens it where it broke off, knowing what was already taken."""
        trial = Trial(self)
        while True:
            try:
                async for message in start():
                    self.answered = True
                    trial = Trial(self)
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                await trial.failed(error)


class Trial:
    """One thing that is tried until it succeeds, is refused, or patience ends."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._since = asyncio.get_running_loop().time()
        self._pause = _FIRST_PAUSE

    async def failed(self, error: grpc.aio.AioRpcError) -> None:
        """Returns when it is time to try again; raises what the caller should see instead."""
        if refusal := errors.from_rpc(error):
            raise refusal from None
        if not errors.is_transient(error):
            raise CallFailed(f"{error.code().name}: {error.details()}") from None
        await self.waited(_words(error))

    async def waited(self, why: str) -> None:
        """Returns when it is time to try again; Unreachable when patience has ended."""
        line = self._line
        spent = asyncio.get_running_loop().time() - self._since
        if spent >= (line.patience if line.answered else line.first):
            raise Unreachable(line.address, why, before=line.answered) from None
        if self._pause == _FIRST_PAUSE and line.answered:
            line.on_trouble(why)
        await asyncio.sleep(random.uniform(0, self._pause))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


def _words(error: grpc.aio.AioRpcError) -> str:
    """How it failed, without gRPC's way of saying so."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = (error.details() or error.code().name).strip()
    if details in _BROKEN:
        return "the connection broke"
    if error.code() is grpc.StatusCode.INTERNAL:
        return details
    return details.rpartition(": ")[2].strip(" ]") or details
