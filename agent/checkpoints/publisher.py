"""Brings an attempt's checkpoints to safety, always in this order:

    staging/step_N → hash, manifest, fsync → ckpt/step_N → (its line is stored) → registry row → store → copy on the row

The three stages are independent: sealing is local and continues whatever the network does; registering waits for the
coordinator; uploading waits for a store. Where one lags, only the newest checkpoint stays queued. Training is never
held up, and what a host that dies had sealed is found again by the next agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Never, TypeVar

from agent.checkpoints.staging import resolve_inside, seal_checkpoint
from agent.coordinator_client import CALL_TIMEOUT, Contact, call_with_retry
from agent.events.journal import Journal
from agent.events.reports import SavedCheckpoint
from agent.events.sources import EventSource
from agent.folder import AttemptFolder
from agent.stores.publishing import AttemptStore
from agent.wire import Assignment
from relay.errors import EventsMissing, InputMissing, LeaseLost, RelayError
from relay.logs import get_logger
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc, runs_pb2
from storage.base import FolderKey, StoreRefused
from storage.manifest import Manifest, ManifestError

log = get_logger(__name__)
T = TypeVar("T")
MAX_PUTS = 3  #: tries, where a store says that it lacks what it has just taken


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint whose bytes are final and on this host's disk."""

    saved: SavedCheckpoint
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class RegisteredCheckpoint:
    """A checkpoint that the registry has."""

    name: str
    sealed: LocalCheckpoint


class CheckpointPublisher:
    """The checkpoints of one attempt. `run` as a task beside the trainer; it raises LeaseLost."""

    def __init__(
        self,
        assignment: Assignment,
        folder: AttemptFolder,
        *,
        agent: str,
        stub: agents_pb2_grpc.AgentsStub,
        metadata: tuple[tuple[str, str], ...],
        contact: Contact,
        publishing: AttemptStore,
        place: Callable[[int], FolderKey],
        sources: Mapping[str, EventSource],
        journal: Journal,
        retain: Callable[[set[int]], Awaitable[None]],
        on_registered: Callable[[RegisteredCheckpoint], None] = lambda _: None,
        sealed_up_to: int = -1,
    ) -> None:
        """`on_registered` is called with each checkpoint that the registry has taken.

        `sealed_up_to` is a step up to which everything is done. Sealing and registering twice is harmless.
        """
        self._assignment = assignment
        self._folder = folder
        self._agent = agent
        self._stub = stub
        self._metadata = metadata
        self._contact = contact
        self._publishing = publishing
        self._place = place
        self._sources = sources
        self._journal = journal
        self._retain = retain
        self._on_registered = on_registered
        self._offered: asyncio.Queue[SavedCheckpoint] = asyncio.Queue()
        self._sealed: LatestSlot[LocalCheckpoint] = LatestSlot()
        self._registered: LatestSlot[RegisteredCheckpoint] = LatestSlot()
        self._newest = sealed_up_to  #: step of the newest sealed checkpoint
        self._head: LocalCheckpoint | None = None  #: the newest registered checkpoint
        self._copied = -1  #: step of the newest checkpoint with a copy on its row

    def offer(self, saved: SavedCheckpoint) -> None:
        """Queue a checkpoint that the trainer has finished."""
        self._offered.put_nowait(saved)

    async def run(self) -> Never:
        """Seal, register and upload until cancelled."""
        async with asyncio.TaskGroup() as group:
            for step in (self._seal_all, self._register_all, self._upload_all):
                group.create_task(step())
        raise AssertionError("never reached")

    def sync(self, known: Iterable[runs_pb2.Checkpoint]) -> None:
        """Take over what the registry has, as a new session says: a failover may have lost what it had taken (F9)."""
        if self._head is None or self._sealed.waiting or self._sealed.working:  # a newer one is coming anyway
            return
        step = self._head.saved.step
        stores = {copy.store for row in known if row.step == step for part in row.parts for copy in part.copies}
        if "host" not in stores or (self._copied == step and self._publishing.scheme not in stores):
            log.warning("checkpoint registered again", step=step)
            self._sealed.put(self._head)

    @property
    def registered_step(self) -> int | None:
        """The newest step that the registry has taken."""
        return self._head.saved.step if self._head is not None else None

    async def drain(self) -> None:
        """Wait until everything offered is as safe as it can be made: registered, and in its store."""
        await self._offered.join()
        await self._sealed.drain()
        await self._registered.drain()

    async def _seal_all(self) -> Never:
        while True:
            saved = await self._offered.get()
            if saved.step > self._newest:
                await self._seal(saved)
            self._offered.task_done()

    async def _seal(self, saved: SavedCheckpoint) -> None:
        target = self._folder.checkpoint(saved.step)
        try:
            manifest = await asyncio.to_thread(self._seal_now, saved, target)
        except (OSError, ManifestError) as error:
            await self._journal.record("error", f"the checkpoint of step {saved.step} cannot be published: {error}")
            return
        self._newest = saved.step
        log.info("checkpoint sealed", step=saved.step, bytes=manifest.size)
        self._sealed.put(LocalCheckpoint(saved, manifest))
        try:
            await self._retain(self._needed())
        except OSError as error:  # older ones stay, the next one tries again
            log.error("older checkpoints not removed", reason=error)

    def _seal_now(self, saved: SavedCheckpoint, target: Path) -> Manifest:
        """Seal a checkpoint. Blocking. A program's own line may name nothing outside its staging folder (R7)."""
        staging = self._folder.staging
        place = staging / saved.path if saved.source == "agent" else resolve_inside(staging, saved.path)
        return seal_checkpoint(place, target, step=saved.step, metrics=saved.metrics)

    def _needed(self) -> set[int]:
        """Return the steps whose bytes on this host must stay."""
        waiting = [each.saved.step for each in (self._sealed.waiting, self._sealed.working) if each]
        uploading = [each.sealed.saved.step for each in (self._registered.waiting, self._registered.working) if each]
        head = [self._head.saved.step] if self._head else []
        return {*waiting, *uploading, *head, self._newest}

    async def _register_all(self) -> Never:
        while True:
            await self._sealed.wait()
            with self._sealed.take() as sealed:
                try:
                    registered = await self._register(sealed)
                    self._registered.put(registered)
                    self._on_registered(registered)
                except LeaseLost:
                    raise
                except (RelayError, OSError) as refusal:  # e.g. a step before the one it resumed from; or a full disk
                    step = sealed.saved.step
                    self._head = None if self._head is sealed else self._head
                    await self._journal.record("error", f"the checkpoint of step {step} was refused: {refusal}")

    async def _register(self, sealed: LocalCheckpoint) -> RegisteredCheckpoint:
        saved, manifest = sealed.saved, sealed.manifest
        await asyncio.to_thread(self._folder.offer, saved.step)
        request = pb.RegisterCheckpointRequest(
            lease=self._assignment.lease,
            node=self._assignment.node,
            step=saved.step,
            manifest_digest=manifest.digest,
            size=manifest.size,
            files=len(manifest.files),
            metrics=saved.metrics,
            evaluation_due=saved.evaluation_due,
            required_cursors=[pb.Cursor(node=self._assignment.node, source=saved.source, offset=saved.end)],
            copies=[runs_pb2.Copy(store="host", uri=f"host://{self._agent}")],
        )
        while True:
            await self._sources[saved.source].wait_stored(saved.end)
            try:
                answer = await call_with_retry(
                    self._contact,
                    lambda: self._stub.RegisterCheckpoint(request, metadata=self._metadata, timeout=CALL_TIMEOUT),
                )
                break
            except EventsMissing:  # a failover lost what had been acknowledged: it is sent again first
                await self._contact.wait_for_reply()
        self._head = sealed
        log.info("checkpoint registered", checkpoint=answer.checkpoint.name, head=answer.checkpoint.head)
        return RegisteredCheckpoint(answer.checkpoint.name, sealed)

    async def _upload_all(self) -> Never:
        while True:
            await self._registered.wait()
            with self._registered.take() as registered:
                try:
                    await self._upload(registered)
                except LeaseLost:
                    raise
                except (RelayError, StoreRefused, ManifestError, OSError) as error:
                    step = registered.sealed.saved.step
                    await self._journal.record(
                        "error", f"the checkpoint of step {step} stays on {self._agent} only: {error}"
                    )

    async def _upload(self, registered: RegisteredCheckpoint) -> None:
        step = registered.sealed.saved.step
        if (uri := await self._stored(registered)) is None:
            log.info("checkpoint not copied", checkpoint=registered.name, reason="a newer one is there")
            return
        self._copied = step
        log.info("checkpoint copied", checkpoint=registered.name, uri=uri)

    async def _stored(self, registered: RegisteredCheckpoint) -> str | None:
        """Return the uri of a copy that is on its row; None when a newer checkpoint came while the store was away.

        What has gone from the store meanwhile is uploaded again.
        """
        manifest, step = registered.sealed.manifest, registered.sealed.saved.step
        folder = self._folder.checkpoint(step)
        for again in range(MAX_PUTS):
            uri = await self._publishing.put(
                self._place(step), manifest, lambda file: folder / file.path, self._registered.wait
            )
            if uri is None:
                return None
            request = pb.AddCopyRequest(
                lease=self._assignment.lease,
                checkpoint=registered.name,
                node=self._assignment.node,
                copy=runs_pb2.Copy(store=self._publishing.scheme, uri=uri),
            )
            try:
                await call_with_retry(
                    self._contact,
                    lambda: self._stub.AddCopy(request, metadata=self._metadata, timeout=CALL_TIMEOUT),  # noqa: B023
                )
                return uri
            except InputMissing:
                if again == MAX_PUTS - 1:
                    raise
        raise AssertionError("never reached")


class LatestSlot(Generic[T]):
    """A queue of length one, in which a newer item replaces the older: a backlog keeps only the newest.

    One producer puts, one consumer takes and works on it; `drain` waits until nothing is queued or worked on.
    """

    def __init__(self) -> None:
        self._item: T | None = None
        self._present = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.working: T | None = None

    def put(self, item: T) -> None:
        """Queue an item, and drop the one that is queued."""
        self._item = item
        self._present.set()
        self._idle.clear()

    @property
    def waiting(self) -> T | None:
        return self._item

    async def wait(self) -> None:
        """Wait until an item is queued."""
        await self._present.wait()

    @contextmanager
    def take(self) -> Iterator[T]:
        """Take the queued item, and count as busy inside the block."""
        assert self._item is not None
        self.working, self._item = self._item, None
        self._present.clear()
        try:
            yield self.working
        finally:
            self.working = None
            if self._item is None:
                self._idle.set()

    async def drain(self) -> None:
        """Wait until nothing is queued and nothing is worked on."""
        await self._idle.wait()
