"""A gRPC proxy that sees calls: it loses replies, sends requests twice, keeps streams back, and records what passes.

It stands between an agent or a client and the coordinator, as an ingress does. A reply that it loses was given: what
the call did is committed, and its caller sees a broken line.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import grpc
from grpc import aio

STREAMS = ("Session", "AppendEvents")
_Context = aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has passed; of a stream, one of its messages."""

    path: str
    request: bytes

    @property
    def method(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(eq=False, slots=True)
class Gateway(grpc.GenericRpcHandler):
    """In front of one upstream."""

    channel: aio.Channel
    address: str = ""
    doubling: bool = False  #: every request that is not of a stream is sent twice at once
    chance: float = 0.0  #: of each reply to be lost
    dice: Random = field(default_factory=lambda: Random(8))
    passed: list[Call] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)  #: replies lost so far, by method
    _losing: Counter[str] = field(default_factory=Counter)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _twins: set[asyncio.Task[None]] = field(default_factory=set)

    def drop_replies(self, method: str, replies: int = 1) -> None:
        """The next replies to this method do not arrive; of a stream, the next answer, and the stream breaks."""
        self._losing[method] += replies

    async def has_lost(self, method: str, replies: int = 1) -> None:
        """Waits until that many replies have been lost."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.lost[method] >= replies)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Every method there is, as bytes."""
        return grpc.stream_stream_rpc_method_handler(partial(self._carry, details.method, details.invocation_metadata))

    async def _carry(
        self, path: str, metadata: Any, requests: AsyncIterator[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        method = path.rpartition("/")[2]
        sent = self._recorded(path, requests)
        if self.doubling and method not in STREAMS:
            sent = await self._twin(path, metadata, sent)
        call = self._call(path, metadata, sent)
        try:
            async for reply in call:
                if self._losing[method] or self.dice.random() < self.chance:
                    await self._count_lost(method)
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
                yield reply
        except aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        finally:
            call.cancel()

    async def _recorded(self, path: str, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for request in requests:
            self.passed.append(Call(path, request))
            yield request

    async def _twin(self, path: str, metadata: Any, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Sends the request by itself too; what that is answered is nobody's business."""
        whole = [request async for request in requests]
        twin = asyncio.create_task(_drained(self._call(path, metadata, _each(whole))))
        self._twins.add(twin)
        twin.add_done_callback(self._twins.discard)
        return _each(whole)

    def _call(self, path: str, metadata: Any, requests: AsyncIterator[bytes]) -> aio.StreamStreamCall[bytes, bytes]:
        method: aio.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(path)
        return method(requests, metadata=metadata)

    async def _count_lost(self, method: str) -> None:
        async with self._changed:
            self._losing[method] -= bool(self._losing[method])
            self.lost[method] += 1
            self._changed.notify_all()


async def _each(requests: list[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def _drained(call: aio.StreamStreamCall[bytes, bytes]) -> None:
    try:
        async for _ in call:
            pass
    except aio.AioRpcError:
        return


@asynccontextmanager
async def gateway(upstream: str) -> AsyncIterator[Gateway]:
    """A gateway on loopback."""
    server = aio.server()
    async with aio.insecure_channel(upstream) as channel:
        made = Gateway(channel)
        server.add_generic_rpc_handlers((made,))
        made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield made
        finally:
            await server.stop(None)
