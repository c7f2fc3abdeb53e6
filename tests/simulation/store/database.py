"""The simulated database as one process sees it, in place of `coordinator.database.connections.Database`.

Its pool is never empty, no statement is too slow, and no connection is closed for idling (but see `sever`). Queries
that use SQLAlchemy, the lists for users, do not exist here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import ParamSpec, TypeVar

import asyncpg

from coordinator.database.connections import CHANNELS, Database, DatabaseAway, Notifications
from coordinator.store.statement import Interpreter, Statement
from tests.simulation.store.execution import Execution
from tests.simulation.store.repertoire import REPERTOIRE
from tests.simulation.store.storage import Storage, Transaction

P = ParamSpec("P")
R = TypeVar("R")


class Moment(Enum):
    """When something can happen on the way between a process and the database."""

    STATEMENT = "before a statement"
    COMMIT = "before a commit"
    COMMITTED = "after a commit, before its answer: when the answer is lost, its outcome is not known"


#: Awaited at each moment; it may take its time, and raise DatabaseAway.
Pause = Callable[[Moment], Awaitable[None]]


async def no_pause(_: Moment) -> None:
    """Everything is near."""


class SimulatedNotifications(Notifications):
    """Passes on what other transactions announce to whoever waits for it in this process."""

    def __init__(self) -> None:  # without a connection of its own: the storage tells it
        self._listeners: dict[tuple[str, str | None], dict[asyncio.Event, None]] = {}
        self._cut_off = False

    @asynccontextmanager
    async def subscribe(self, channel: str, key: str | None = None) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever `key` (None: anything) is announced; in the order of subscription."""
        if channel not in CHANNELS:
            raise ValueError(f"nobody listens on {channel}")
        event = asyncio.Event()
        listeners = self._listeners.setdefault((channel, key), {})
        listeners[event] = None
        try:
            yield event
        finally:
            listeners.pop(event, None)
            if not listeners and self._listeners.get((channel, key)) is listeners:
                del self._listeners[channel, key]

    @property
    def cut_off(self) -> bool:
        """While its line is cut nothing is heard. Afterwards everybody is woken: something may have been missed."""
        return self._cut_off

    @cut_off.setter
    def cut_off(self, cut_off: bool) -> None:
        self._cut_off = cut_off
        if not cut_off:
            self.wake_everybody()

    def announce(self, channel: str, payload: str) -> None:
        """Deliver what a commit announces, unless the line is cut."""
        if not self._cut_off:
            for key in (payload, None):
                for event in self._listeners.get((channel, key), ()):
                    event.set()

    def wake_everybody(self) -> None:
        """Wake every listener, since one may have missed something."""
        if not self._cut_off:
            for events in self._listeners.values():
                for event in events:
                    event.set()


class SimulatedConnection(Interpreter):
    """Carries out statements in a transaction, or each in one of its own."""

    def __init__(self, database: SimulatedDatabase) -> None:
        self.database = database
        self.transaction: Transaction | None = None
        self._line = database.line

    async def carry_out(self, statement: Statement[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """After the way there."""
        await self.reach(Moment.STATEMENT)
        if self.transaction is not None:
            return await self._execute(self.transaction, statement, *args, **kwargs)
        transaction = self.database.storage.begin(self)
        try:
            result = await self._execute(transaction, statement, *args, **kwargs)
            self.database.storage.commit(transaction)
        except BaseException:
            self.database.storage.rollback(transaction)
            raise
        if transaction.writes:
            await self.reach(Moment.COMMITTED)
        return result

    async def reach(self, moment: Moment) -> None:
        """Go to the database, or back; DatabaseAway when that is not possible, or no longer over this connection."""
        await self.database.reach(moment)
        if self.database.line != self._line:
            raise DatabaseAway("the connection was closed")

    async def _execute(
        self, transaction: Transaction, statement: Statement[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        transaction.check()
        if transaction.failed:
            raise asyncpg.InFailedSQLTransactionError("the transaction has failed before")
        try:
            result: R = await REPERTOIRE[statement](Execution(transaction), *args, **kwargs)
        except BaseException:
            transaction.failed = True
            raise
        return result


class SimulatedDatabase(Database):
    """One per process. `pause` is the way to the database."""

    def __init__(self, storage: Storage, pause: Pause = no_pause) -> None:
        self.url = "simulated"
        self.storage = storage
        self.notifications: SimulatedNotifications = SimulatedNotifications()
        self.line = 0  #: counts how often its connections were lost
        self._pause = pause
        self._killed = False
        storage.databases[self] = None

    def kill(self) -> None:
        """Kill the process: its transactions and locks are released at once, and it runs nothing any more."""
        self._killed = True
        self.storage.databases.pop(self, None)
        self.sever()

    def sever(self) -> None:
        """Lose its connections, as by a timeout of the server: open transactions roll back, locks are released."""
        self.line += 1
        self.storage.let_go(self)

    async def reach(self, moment: Moment) -> None:
        """Go there, or back; DatabaseAway when that is not possible."""
        self._check()
        await self._pause(moment)
        self._check()

    def _check(self) -> None:
        if self._killed:
            raise DatabaseAway("this process is dead")
        if self.storage.away:
            raise DatabaseAway("the database is away")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SimulatedConnection]:
        """A connection for single statements, each a transaction of its own."""
        self._check()
        yield SimulatedConnection(self)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SimulatedConnection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        self._check()
        connection = SimulatedConnection(self)
        transaction = connection.transaction = self.storage.begin(connection)
        try:
            yield connection
            await connection.reach(Moment.COMMIT)
            if not transaction.failed:  # otherwise Postgres rolls it back, and says nothing
                self.storage.commit(transaction)
        except BaseException:
            self.storage.rollback(transaction)
            raise
        self.storage.rollback(transaction)
        await connection.reach(Moment.COMMITTED)

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[SimulatedConnection]:
        """A connection for what lasts as long as its connection (an advisory lock)."""
        self._check()
        connection = SimulatedConnection(self)
        try:
            yield connection
        finally:
            self.storage.unlock_advisory(connection)

    async def ping(self) -> None:
        """Return when the database answers; DatabaseAway when it does not."""
        await self.reach(Moment.STATEMENT)
