"""A bad line to an HTTP server: a proxy that does to requests what overloaded stores and networks do."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from random import Random

CHUNK = 64 * 1024


class Fault(Enum):
    """What becomes of one request."""

    THROTTLED = "429 Too Many Requests"
    BROKEN = "500 Internal Server Error"
    BUSY = "503 Service Unavailable"
    STALLED = "no answer, ever"
    RESET = "the line is cut in the middle of the request"
    LOST = "carried out, and its answer lost"


@dataclass
class Weather:
    """`async with weather(upstream) as sky:` listens on `sky.address`. `plan` says what becomes of request number n."""

    upstream: str
    address: str = ""
    plan: Callable[[int], Fault | None] = lambda number: None
    requests: int = 0
    uploaded: int = 0  # bytes of requests that came through
    lines: list[str] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def at(self, number: int, fault: Fault) -> None:
        """From now on, only the request of this number fails."""
        self.requests = 0
        self.plan = lambda count: fault if count == number else None

    def plan_faults(self, random: Random, share: float) -> None:
        self.plan = lambda count: random.choice(list(Fault)) if random.random() < share else None

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._request(reader, writer)
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fault, self.requests = self.plan(self.requests), self.requests + 1
        self.lines.append(head.partition(b"\r\n")[0].decode())
        size = _length(head)
        if fault is Fault.RESET:
            await reader.readexactly(size // 2)
            return _reset(writer)
        body = await reader.readexactly(size)
        match fault:
            case Fault.THROTTLED | Fault.BROKEN | Fault.BUSY:
                writer.write(f"HTTP/1.1 {fault.value}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
                await writer.drain()
            case Fault.STALLED:
                await reader.read()  # until the client has had enough
            case _:
                await self._pass_on(head, body, None if fault is Fault.LOST else writer)
                if fault is Fault.LOST:
                    _reset(writer)

    async def _pass_on(self, head: bytes, body: bytes, writer: asyncio.StreamWriter | None) -> None:
        host, _, port = self.upstream.rpartition(":")
        answers, requests = await asyncio.open_connection(host, int(port))
        try:
            lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(b"connection:")]
            requests.write(b"\r\n".join([*lines, b"connection: close", b"", b""]) + body)
            self.uploaded += len(body)
            await requests.drain()
            while data := await answers.read(CHUNK):
                if writer is not None:
                    writer.write(data)
                    await writer.drain()
        finally:
            requests.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _reset(writer: asyncio.StreamWriter) -> None:
    """Not an end: a break."""
    end = writer.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def weather(upstream: str) -> AsyncIterator[Weather]:
    """A line to `upstream`, fine until something is planned."""
    sky = Weather(upstream)
    server = await asyncio.start_server(sky.serve, "127.0.0.1", 0, limit=1 << 20)
    sky.address = "{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield sky
    finally:
        server.close()
        for task in sky.tasks:
            task.cancel()
        await asyncio.gather(*sky.tasks, return_exceptions=True)
