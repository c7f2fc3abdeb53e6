"""A TCP proxy that does to connections what networks do: cut them, swallow, delay or throttle what they carry.

It stands in front of one or more upstreams, taken in turn; one that refuses is skipped for the next. An upstream
is `host:port`, or the path of a Unix socket. What is done to it holds for the connections there are and those to come,
until `heal()`. All methods are immediate and belong to the event loop the proxy was started on.

Bytes that a black hole holds back are delivered when it heals, as TCP would by retransmission. The kernel still
accepts connections meanwhile; they reach no upstream before the hole closes.
"""

import asyncio
import contextlib
import enum
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

CHUNK = 64 * 1024
IN_FLIGHT = 64  # chunks of one direction of one connection that a delayed line holds


class Way(enum.Flag):
    """A direction: up from clients to upstreams, or down."""

    UP = enum.auto()
    DOWN = enum.auto()
    BOTH = UP | DOWN


@dataclass(eq=False)
class Lane:
    """What one direction of the line is like. All connections share its bandwidth, a chunk at a time in turn."""

    delay: float = 0.0  # seconds
    rate: float | None = None  # bytes per second
    open: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()

    def chunk(self) -> int:
        """Small enough that a slow line is shared fairly."""
        return CHUNK if self.rate is None else max(256, min(CHUNK, int(self.rate / 20)))

    async def transmit(self, size: int) -> None:
        """As long as the line takes for that many bytes."""
        await self.open.wait()
        if self.rate is not None:
            async with self.turn:
                await self.until(now() + size / self.rate)

    async def arrive(self, due: float) -> None:
        await self.until(due)
        await self.open.wait()

    async def until(self, due: float) -> None:
        """Until that moment, or until the line is changed."""
        if due > now():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self.changed.wait()

    def change(self) -> None:
        """Lets go of what waits for a delay that may no longer hold."""
        self.changed.set()
        self.changed = asyncio.Event()


class Stream:
    """One direction of one connection."""

    def __init__(self, lane: Lane, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self.lane, self.source, self.sink = lane, source, sink
        self.ended = False
        self._flight: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)

    async def read(self) -> None:
        while data := await self.source.read(CHUNK):
            while data:  # in chunks of what the line is now, not of what it was when it was asked to read
                chunk, data = data[: self.lane.chunk()], data[self.lane.chunk() :]
                await self.lane.transmit(len(chunk))
                await self._flight.put((now() + self.lane.delay, chunk))
        await self._flight.put((now() + self.lane.delay, b""))

    async def write(self) -> None:
        while True:
            due, data = await self._flight.get()
            await self.lane.arrive(due)
            if not data:
                return self.end()
            if not self.ended:
                self.sink.write(data)
                await self.sink.drain()

    def end(self) -> None:
        """Says that no more will come; what does come is swallowed."""
        if not self.ended and not self.sink.is_closing():
            self.sink.write_eof()
        self.ended = True


class Proxy:
    """`async with Proxy(["127.0.0.1:7070"]) as proxy:` listens on `proxy.address`."""

    def __init__(self, upstreams: Sequence[str], listener: socket.socket | None = None) -> None:
        """`listener` is a bound socket in the place of one on loopback."""
        self.upstreams = list(upstreams)
        self._listener = listener
        self.address = ""
        self.accepted = 0  # connections so far
        self._lanes = {Way.UP: Lane(), Way.DOWN: Lane()}
        self._turn = itertools.count()
        self._connections: set[tuple[Stream, Stream]] = set()  # up, down
        self._tasks: set[asyncio.Task[None]] = set()  # one for each client
        self._arrival = asyncio.Condition()

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        else:
            self._server = await asyncio.start_server(self._accept, sock=self._listener)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many are open to an upstream now."""
        return len(self._connections)

    async def until_accepted(self, count: int) -> None:
        """Until that many connections have come in since the start."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: self.accepted >= count)

    def cut(self) -> None:
        """Resets every connection. New ones are welcome."""
        for task in self._tasks:
            task.cancel()

    def blackhole(self, way: Way = Way.BOTH) -> None:
        """Keeps and accepts connections, and forwards nothing."""
        for lane in self._each(way):
            lane.open.clear()

    def half_close(self, way: Way = Way.DOWN) -> None:
        """Ends one direction of every connection there is; the other goes on."""
        for up, down in self._connections:
            if Way.UP in way:
                up.end()
            if Way.DOWN in way:
                down.end()

    def delay(self, seconds: float, way: Way = Way.BOTH) -> None:
        """Everything arrives that much later, each way."""
        for lane in self._each(way):
            lane.delay = seconds
            lane.change()

    def bandwidth(self, bytes_per_second: float, way: Way = Way.BOTH) -> None:
        """All connections together carry no more than this, each way."""
        for lane in self._each(way):
            lane.rate = bytes_per_second
            lane.change()

    def heal(self) -> None:
        """A perfect line again; what was held back arrives."""
        for lane in self._each(Way.BOTH):
            lane.delay, lane.rate = 0.0, None
            lane.open.set()
            lane.change()

    def _each(self, way: Way) -> Iterator[Lane]:
        return (lane for lane_way, lane in self._lanes.items() if lane_way in way)

    def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, client))
        self._tasks.add(task)
        task.add_done_callback(partial(self._finished, client))

    def _finished(self, client: asyncio.StreamWriter, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step, so not seen to in _carry
            reset(client)

    async def _carry(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        async with self._arrival:
            self.accepted += 1
            self._arrival.notify_all()
        for lane in self._each(Way.BOTH):  # a handshake takes both ways
            await lane.open.wait()
        try:
            async with closing(client):
                source, upstream = await self._dial()
                async with closing(upstream):
                    up = Stream(self._lanes[Way.UP], reader, upstream)
                    down = Stream(self._lanes[Way.DOWN], source, client)
                    await self._run(up, down)
        except* OSError:
            pass  # one side broke off, or could not be reached: the other has been told by a reset

    async def _run(self, up: Stream, down: Stream) -> None:
        """Until both directions have ended; OSError when either side breaks off."""
        self._connections.add((up, down))
        try:
            async with asyncio.TaskGroup() as group:
                for work in (up.read, up.write, down.read, down.write):
                    group.create_task(work())
        finally:
            self._connections.discard((up, down))

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        start = next(self._turn)
        for offset in range(len(self.upstreams)):
            with contextlib.suppress(OSError):
                return await _connect(self.upstreams[(start + offset) % len(self.upstreams)])
        raise ConnectionRefusedError(f"none of {self.upstreams} answers")


async def _connect(upstream: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if upstream.startswith("/"):
        return await asyncio.open_unix_connection(upstream)
    host, port = upstream.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Closes what ended in order, resets what did not."""
    try:
        yield
    except BaseException:
        reset(writer)
        raise
    writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a crash would: the peer gets RST, not FIN."""
    if not writer.is_closing():
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def now() -> float:
    return asyncio.get_running_loop().time()
