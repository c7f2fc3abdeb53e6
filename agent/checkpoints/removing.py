"""Deletes what the coordinator has scheduled for deletion: copies on this host's disk and in stores that it reaches.

The coordinator decides and keeps the list; a copy stays listed until it is reported gone. So whatever dies in between
is repeated, by this agent or by the next, and nothing is forgotten. A folder is deleted by renaming it first: it is
whole or not there.

The agent also asks about attempts that are over: a lease that was lost may have left a checkpoint that was never
registered, which no list would name.

It asks when a session begins and every dozen heartbeats: what is scheduled for deletion waits for a lease's time in any
case. When the disk is low the agent says so, and the coordinator schedules what this host could do without.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Never

from agent.cleanup import OpenAttempts
from agent.coordinator_client import CALL_TIMEOUT, Contact, Coordinator, call_with_retry
from agent.folder import AttemptFolder, RunFolder, clean_checkpoints
from agent.wire import Assignment
from relay.errors import RelayError
from relay.logs import bind, get_logger, name_fields
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc
from storage.base import Store, StoreRefused, StoreUnavailable

log = get_logger(__name__)

EVERY = 12  #: heartbeats between two looks
BATCH = 1000  #: checkpoints in one request
#: A disk is low when less is free than this part of it and than so many bytes.
_SPARE_PART, _SPARE_BYTES = 0.05, 20 << 30


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The free and the whole size of a disk, in bytes."""

    free: int
    total: int

    @classmethod
    def measure(cls, folder: Path) -> DiskSpace:
        """Return the space of the disk that a folder is on. Blocking."""
        usage = shutil.disk_usage(folder)
        return cls(usage.free, usage.total)

    @property
    def low(self) -> bool:
        return self.free < min(self.total * _SPARE_PART, _SPARE_BYTES)


@dataclass(slots=True)
class CheckpointRemover:
    """The remover of checkpoints, one for all attempts on this host. `run` as a service."""

    agent: str  #: `agents/{agent}`
    root: Path
    stub: agents_pb2_grpc.AgentsStub
    coordinator: Coordinator
    contact: Contact
    stores: Mapping[str, Store]
    open_attempts: OpenAttempts
    measure_disk: Callable[[Path], DiskSpace] = DiskSpace.measure  #: blocking
    _session_id: str = ""
    _every: float = 60.0  #: seconds
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _working: asyncio.Lock = field(default_factory=asyncio.Lock)

    def start_session(self, session_id: str, heartbeat: float) -> None:
        """Note that a session has begun, and look at once."""
        self._session_id = session_id
        self._every = EVERY * heartbeat
        self._woken.set()

    async def run(self) -> Never:
        """Delete what is scheduled, from time to time, until cancelled."""
        await asyncio.to_thread(clean_checkpoints, self.root)
        while True:
            await self._woken_within(self._every)
            room = await asyncio.to_thread(self.measure_disk, self.root)
            await self.remove_scheduled(disk_low=room.low)

    async def _woken_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()

    async def remove_scheduled(self, *, disk_low: bool = False) -> None:
        """Delete all that is scheduled and can be deleted now."""
        async with self._working:
            try:
                while self._session_id and await self._remove_batch(disk_low=disk_low):
                    disk_low = False
            except (OSError, RelayError) as error:  # e.g. another session has begun: its welcome wakes us
                log.warning("removals unfinished", reason=error)

    async def _remove_batch(self, *, disk_low: bool) -> bool:
        """Ask and delete once, and return whether there may be more."""
        left = await asyncio.to_thread(self._find_leftovers)
        sealed = [pb.SealedCheckpoint(lease=lease, step=step) for lease, step in left][:BATCH]
        ask = pb.ListRemovalsRequest(agent=self.agent, session_id=self._session_id, disk_low=disk_low, sealed=sealed)
        listed = await call_with_retry(
            self.contact,
            lambda: self.stub.ListRemovals(ask, metadata=self.coordinator.metadata, timeout=CALL_TIMEOUT),
        )
        for orphan in listed.orphans:
            with bind(**name_fields(orphan.lease), attempt=None):  # an attempt that lacks room may be the caller
                log.info("unregistered checkpoint removed", step=orphan.step)
            await asyncio.to_thread(left[orphan.lease, orphan.step].discard, orphan.step)
        gone = []
        for each in listed.removals:
            with bind(**name_fields(each.lease), attempt=each.attempt):
                if await self._remove(each):
                    gone.append(each)
        if not gone:
            return False
        report = pb.ReportRemovalsRequest(agent=self.agent, session_id=self._session_id, removals=gone)
        await call_with_retry(
            self.contact,
            lambda: self.stub.ReportRemovals(report, metadata=self.coordinator.metadata, timeout=CALL_TIMEOUT),
        )
        return True

    def _find_leftovers(self) -> dict[tuple[str, int], AttemptFolder]:
        """Return the sealed checkpoints of attempts that are over, by lease and step. Blocking."""
        begun = {each.path for each in self.open_attempts.all().values()}
        found: dict[tuple[str, int], AttemptFolder] = {}
        for path in sorted(self.root.absolute().glob("runs/*/attempts/*")):
            attempt = AttemptFolder(path)
            if path not in begun and (steps := attempt.steps()):
                with contextlib.suppress(OSError, ValueError):  # another version's, or none that was ever assigned
                    lease = Assignment.load(attempt.assignment).lease
                    found |= {(lease, step): attempt for step in steps}
        return found

    async def _remove(self, removal: pb.Removal) -> bool:
        """Delete one copy, and return whether it is gone."""
        try:
            if removal.copy.store == "host":
                await asyncio.to_thread(self._discard, removal)
            elif store := self.stores.get(removal.copy.store):
                await store.remove(removal.copy.uri)
            else:
                return False
        except (OSError, ValueError, StoreUnavailable, StoreRefused) as error:  # tried again when it is asked for again
            log.warning("copy not removed", uri=removal.copy.uri, step=removal.step, reason=error)
            return False
        log.info("copy removed", uri=removal.copy.uri, step=removal.step)
        return True

    def _discard(self, removal: pb.Removal) -> None:
        _, run_id, _, lease_id = removal.lease.split("/")
        run = RunFolder(self.root, run_id)
        run.discard(run.attempt(removal.attempt, lease_id), removal.step)
