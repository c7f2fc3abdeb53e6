"""An attempt's first write: what it resumes from (S6). It is kept beside the attempt, and sent again when it was lost.

The coordinator takes events and checkpoints only after it, so a failover that lost it delays those, and no more.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Never

from agent.coordinator_client import CALL_TIMEOUT, Contact, call_with_retry
from agent.folder import write_atomically
from relay.errors import LeaseLost, RelayError
from relay.logs import get_logger
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc

log = get_logger(__name__)


class StartReport:
    """The report of what an attempt resumes from.

    A failover may lose the report and keep the grant: then the welcome says so, and the attempt's end waits for it
    (F9).
    """

    def __init__(
        self, path: Path, stub: agents_pb2_grpc.AgentsStub, metadata: tuple[tuple[str, str], ...], contact: Contact
    ) -> None:
        self._path = path
        self._stub = stub
        self._metadata = metadata
        self._contact = contact
        self._lost = asyncio.Event()
        self._stored = asyncio.Event()

    async def send(self, request: pb.StartAttemptRequest) -> None:
        """Send until the coordinator has it. Raises RelayError, and OSError when it cannot be kept on disk."""
        await asyncio.to_thread(write_atomically, self._path, request.SerializeToString())
        await self._send(request)

    def mark_stored(self) -> None:
        """Note that an earlier agent has sent it."""
        self._stored.set()

    def sync(self, started: bool) -> None:
        """Take over whether the coordinator has it, as the welcome says."""
        if self._stored.is_set() and not started:
            self._stored.clear()
            self._lost.set()

    async def wait_stored(self) -> None:
        """Wait until the coordinator has it, as far as is known."""
        await self._stored.wait()

    async def resend_when_lost(self) -> Never:
        """Send it again whenever it was lost, until cancelled. Raises LeaseLost."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            try:
                kept = await asyncio.to_thread(self._path.read_bytes)
                await self._send(pb.StartAttemptRequest.FromString(kept))
            except LeaseLost:
                raise
            except (OSError, RelayError) as error:  # nothing of this attempt can count any more: another one may
                log.error("first write lost", path=self._path, reason=error)
                raise LeaseLost from error

    async def _send(self, request: pb.StartAttemptRequest) -> None:
        await call_with_retry(
            self._contact, lambda: self._stub.StartAttempt(request, metadata=self._metadata, timeout=CALL_TIMEOUT)
        )
        self._stored.set()
