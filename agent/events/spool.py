"""Streams the sources of all attempts to the coordinator: each byte counts once, however long the connection is down.

There is one stream, on a connection of its own. After every break a source continues from its acknowledged offset; the
coordinator moves its cursor in the transaction that stores the bytes, so what is sent twice is stored once. The bytes
in flight are bounded by what the connection has been seen to carry in half a heartbeat, so that a backlog never fills
it.

The kernel reports writes (inotify), so a quiet trainer costs nothing and a line is sent at once; lines that come close
together are sent together. Where the kernel does not report (some mounts), files are polled. Files are looked at in a
thread: a volume that hangs must not stop heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Never

import grpc

from agent.coordinator_client import Contact, Coordinator, extract_refusal
from agent.events.inotify import WriteWatcher
from agent.events.sources import RANGE_SIZE, ByteRange, EventSource
from relay.errors import LeaseLost, OffsetGap, from_status
from relay.logs import bind, get_logger, name_fields
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc

log = get_logger(__name__)

GATHER = 0.1  #: seconds between two looks at files that are being written
POLL = 1.0  #: seconds until a look without a report of the kernel
SMALLEST, LARGEST = 64 * 1024, 4 * 1024 * 1024  #: bytes in flight, at most

Call = grpc.aio.StreamStreamCall[pb.AppendEventsRequest, pb.AppendEventsResponse]


class SendWindow:
    """How many bytes may be in flight: doubled while acknowledgements come fast, halved when one is slow. Pure."""

    def __init__(self, heartbeat: float) -> None:
        self.size = SMALLEST
        self.heartbeat = heartbeat
        self._full = False

    def remaining(self, outstanding: int) -> int:
        """Return how many bytes may still be sent."""
        self._full = outstanding >= self.size
        return max(0, self.size - outstanding)

    def adapt(self, seconds: float) -> None:
        """Adapt to a byte range that was acknowledged so many seconds after it was sent."""
        if seconds > self.heartbeat / 2:
            self.size = max(SMALLEST, self.size // 2)
        elif self._full and seconds < self.heartbeat / 4:
            self.size = min(LARGEST, self.size * 2)


class Spool:
    """The sources that are being streamed."""

    def __init__(self, coordinator: Coordinator, contact: Contact, *, heartbeat: float, watcher: WriteWatcher) -> None:
        self._coordinator = coordinator
        self._contact = contact
        self.window = SendWindow(heartbeat)
        self._sources: dict[tuple[str, int, str], EventSource] = {}
        self._watcher = watcher
        self._has_sources = asyncio.Event()  # there is a source to look at
        self._acknowledged = asyncio.Event()  # something was answered
        self._answered = False  # this stream was answered

    def add(self, sources: Iterable[EventSource]) -> None:
        """Stream these sources, too."""
        self._sources |= {source.key: source for source in sources}
        for folder, lease in {source.path.parent: source.lease for source in self._sources.values()}.items():
            if not self._watcher.watch(folder):
                with bind(**name_fields(lease), attempt=None):  # it need not be the caller's
                    log.warning("folder not watched", folder=folder)
        if self._sources:
            self._has_sources.set()

    def remove(self, lease: str) -> None:
        """Stop streaming the sources of a lease."""
        for folder in {source.path.parent for source in self._sources.values() if source.lease == lease}:
            self._watcher.unwatch(folder)
        self._sources = {key: source for key, source in self._sources.items() if source.lease != lease}
        if not self._sources:
            self._has_sources.clear()

    async def run(self) -> Never:
        """Stream until cancelled."""
        while True:
            await self._has_sources.wait()
            self._answered = False
            try:
                await self._stream()
            except grpc.aio.AioRpcError as error:
                if (refusal := extract_refusal(error)) is not None:
                    raise refusal from error
                log.info("event stream broken", reason=error.details())
            if not self._answered:
                await self._contact.wait_for_reply()

    async def _stream(self) -> None:
        async with self._coordinator.dial() as channel:
            call: Call = agents_pb2_grpc.AgentsStub(channel).AppendEvents(metadata=self._coordinator.metadata)
            for source in self._sources.values():
                source.unacked.clear()
                source.rewind()
            sending = asyncio.create_task(self._send(call))
            try:
                await self._receive(call)
            finally:
                sending.cancel()
                call.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, call: Call) -> None:
        """Send until the call ends; the receiver knows why it ended."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._has_sources.wait()
                room = self.window.remaining(self._count_unacked())
                found = await asyncio.to_thread(self._collect, list(self._sources.values()), room)
                for source, byte_range in found:
                    await self._send_one(call, source, byte_range)
                if sum(len(byte_range.data) for _, byte_range in found) >= room:  # there may be more than had room
                    await self._wait_for_room()
                elif not found:
                    await self._wait_for_write()
                elif not any(len(byte_range.data) > RANGE_SIZE // 2 for _, byte_range in found):  # no backlog: gather
                    await asyncio.sleep(GATHER)

    async def _wait_for_room(self) -> None:
        """Wait until an acknowledgement makes room in a full window."""
        if not self.window.remaining(self._count_unacked()):
            self._acknowledged.clear()
            await self._acknowledged.wait()

    async def _wait_for_write(self) -> None:
        """Wait until something was written."""
        await asyncio.sleep(GATHER)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL):
                await self._watcher.wait_for_write()

    def _count_unacked(self) -> int:
        return sum(flight.size for source in self._sources.values() for flight in source.unacked)

    @staticmethod
    def _collect(sources: list[EventSource], room: int) -> list[tuple[EventSource, ByteRange]]:
        """Return one byte range of each source that has grown, events first, while there is room. Blocking."""
        found = []
        for source in sorted(sources, key=lambda source: not source.lines):
            if room > 0 and source.has_unsent() and (byte_range := source.read_next()):
                found.append((source, byte_range))
                room -= len(byte_range.data)
        return found

    async def _send_one(self, call: Call, source: EventSource, byte_range: ByteRange) -> None:
        if byte_range.offset != source.sent:  # rewound while the thread was reading
            return
        source.mark_sent(byte_range, loop_time())
        await call.write(
            pb.AppendEventsRequest(
                lease=source.lease,
                node=source.node,
                source=source.name,
                offset=byte_range.offset,
                data=byte_range.data,
                skipped_bytes=byte_range.skipped,
            )
        )

    async def _receive(self, call: Call) -> None:
        while isinstance(answer := await call.read(), pb.AppendEventsResponse):
            source = self._sources.get((answer.lease, answer.node, answer.source))
            if source is not None:
                self._apply_answer(source, answer)
            self._acknowledged.set()
        log.info("event stream ended")

    def _apply_answer(self, source: EventSource, answer: pb.AppendEventsResponse) -> None:
        if answer.WhichOneof("result") == "acked_offset":
            self._answered = True
            for flight in source.acknowledge(answer.acked_offset):
                self.window.adapt(loop_time() - flight.sent_at)
            return
        match refusal := from_status(answer.refused):
            case LeaseLost():
                self.remove(source.lease)
                source.lost.set()
            case OffsetGap():
                source.handle_gap(int(refusal.metadata["expected"]))
            case _:
                raise refusal or RuntimeError(f"refused without a reason: {answer.refused.message}")


def loop_time() -> float:
    """Return the seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()
