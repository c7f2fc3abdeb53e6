"""The live sessions of this process: one stream with one writer each. All that must outlast them is in the database.

The heartbeats of all streams are combined: while one batch is being written the next one gathers, so that ten thousand
agents cost a few transactions per second. Each heartbeat is answered by a reply, and a reply is pushed whenever the
channel `relay_wishes` names the agent, whichever replica changed its desired state. When the database cannot be read,
the answer is `Wait`: the coordinator is alive, and nothing changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Never
from uuid import UUID

from coordinator.commands import sessions as commands
from coordinator.database.connections import Database, DatabaseAway
from coordinator.values import DesiredState, Heartbeat, Hello, LeaseRecord
from relay.errors import SessionReplaced
from relay.logs import bind, get_logger
from relay.timing import LeaseTiming

_log = get_logger(__name__)


class SessionEnded(Exception):
    """The coordinator has ended this session (the database failed over or was restored): the agent must say hello
    again.
    """


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is open, and what is stored of the leases that its hello named."""

    session_id: UUID
    deployment_id: UUID
    leases: tuple[LeaseRecord, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """The desired state, as the answer to a heartbeat; its sequence is 0 when it is pushed."""

    desired: DesiredState
    sequence: int


@dataclass(frozen=True, slots=True)
class Wait:
    """The answer to a heartbeat while the database cannot be read."""

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class NumberedHeartbeat:
    """A heartbeat with the sequence number that its agent gave it."""

    sequence: int
    heartbeat: Heartbeat


class HeartbeatBatcher:
    """Combines the heartbeats of a process into few transactions. `run` is a service."""

    def __init__(self, db: Database, timing: LeaseTiming) -> None:
        self._db = db
        self._ttl = timing.ttl
        self._waiting: list[tuple[Heartbeat, asyncio.Future[DesiredState]]] = []
        self._arrived = asyncio.Event()

    async def renew(self, heartbeat: Heartbeat) -> DesiredState:
        """Renew the places that the heartbeat lists, and return the desired state of its agent, read afterwards."""
        answer: asyncio.Future[DesiredState] = asyncio.get_running_loop().create_future()
        self._waiting.append((heartbeat, answer))
        self._arrived.set()
        return await answer

    async def run(self) -> Never:
        """Record batch after batch, forever."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                batch, self._waiting = self._waiting, []
                await self._carry_out(batch)
        finally:
            for _, answer in self._waiting:
                answer.cancel()

    async def _carry_out(self, batch: list[tuple[Heartbeat, asyncio.Future[DesiredState]]]) -> None:
        """Record a batch in one transaction. Of two sessions of one agent only the current one changes anything."""
        try:
            desired = await commands.record_heartbeats(self._db, [heartbeat for heartbeat, _ in batch], self._ttl)
        except DatabaseAway as away:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(DatabaseAway(str(away)))
        except BaseException:
            for _, answer in batch:
                answer.cancel()
            raise
        else:
            for heartbeat, answer in batch:
                if not answer.done():
                    answer.set_result(desired[heartbeat.agent])


class Sessions:
    """Opens sessions for the Agents service."""

    def __init__(self, db: Database, timing: LeaseTiming, heartbeats: HeartbeatBatcher) -> None:
        self._db = db
        self._timing = timing
        self._heartbeats = heartbeats

    @contextlib.asynccontextmanager
    async def open(self, hello: Hello) -> AsyncIterator[LiveSession]:
        """Open a session that lasts as long as its stream."""
        async with self._db.notifications.subscribe("relay_wishes", hello.agent) as changed:
            opened = await commands.open_session(self._db, hello, self._timing)
            with bind(agent=hello.agent, session=opened.session_id):
                _log.info("session opened", held=len(hello.held))
                try:
                    first = Heartbeat(
                        agent=hello.agent, session_id=opened.session_id, held=hello.held, readiness=hello.readiness
                    )
                    desired = await self._heartbeats.renew(first)
                    records = await commands.read_lease_records(self._db, hello)
                    welcome = OpenSession(opened.session_id, opened.deployment_id, tuple(records))
                    yield LiveSession(self._db, self._heartbeats, welcome, desired, changed)
                finally:
                    with contextlib.suppress(DatabaseAway):
                        await commands.close_session(self._db, hello.agent, opened.session_id)
                    _log.info("session closed")


class LiveSession:
    """One stream: everything that is sent on it, in one order."""

    def __init__(
        self,
        db: Database,
        heartbeats: HeartbeatBatcher,
        welcome: OpenSession,
        desired: DesiredState,
        changed: asyncio.Event,
    ) -> None:
        self._db = db
        self._heartbeats = heartbeats
        self.welcome = welcome
        self._first = desired
        self._changed = changed
        self._sent_version = -1  # the newest desired version that was sent
        self._newest_sequence = 0  # the newest heartbeat

    async def messages(self, heartbeats: AsyncIterator[NumberedHeartbeat]) -> AsyncGenerator[Reply | Wait, None]:
        """Answer each heartbeat, and push changes in between, until the heartbeats end."""
        yield self._reply(self._first, 0)
        reading = asyncio.ensure_future(anext(heartbeats, None))
        waking = asyncio.ensure_future(self._changed.wait())
        try:
            while True:
                await asyncio.wait({reading, waking}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    if (heartbeat := reading.result()) is None:
                        return
                    reading = asyncio.ensure_future(anext(heartbeats, None))
                    if self._is_newest(heartbeat):
                        yield await self._answer(heartbeat)
                elif (pushed := await self._read_change()) is not None:
                    yield pushed
                if waking.done():
                    waking = asyncio.ensure_future(self._changed.wait())
        finally:
            reading.cancel()
            waking.cancel()

    def _is_newest(self, heartbeat: NumberedHeartbeat) -> bool:
        """Return False for a heartbeat that a later one has overtaken: its list is outdated (F17). 0 is not counted."""
        newer = heartbeat.sequence > self._newest_sequence or not heartbeat.sequence
        self._newest_sequence = max(self._newest_sequence, heartbeat.sequence)
        return newer

    async def _answer(self, heartbeat: NumberedHeartbeat) -> Reply | Wait:
        try:
            return self._reply(await self._heartbeats.renew(heartbeat.heartbeat), heartbeat.sequence)
        except DatabaseAway as away:
            return Wait(heartbeat.sequence, str(away) or "the database is out of reach")

    async def _read_change(self) -> Reply | None:
        """Return the desired state if it has changed; None while it cannot be read, since the next heartbeat will
        return it.
        """
        self._changed.clear()
        try:
            desired = (await commands.read_desired_state(self._db, [self._first.agent]))[self._first.agent]
        except DatabaseAway:
            return None
        known = self._sent_version
        reply = self._reply(desired, 0)
        return reply if desired.version > known else None

    def _reply(self, desired: DesiredState, sequence: int) -> Reply:
        if desired.session_id is None:
            raise SessionEnded("the coordinator ended this session; say hello again")
        if desired.session_id != self.welcome.session_id:
            raise SessionReplaced
        self._sent_version = desired.version
        return Reply(desired, sequence)
