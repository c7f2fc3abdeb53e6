"""Access to Postgres: a pool for frequent statements, an engine for queries, and notifications.

Raw SQL on asyncpg (`transaction`) is used wherever leases, places, cursors and desired states are touched; SQLAlchemy
(`begin`) for lists and filters. A database that is out of reach, or too slow, is `DatabaseAway` within a few seconds,
in all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from relay.backoff import Backoff
from relay.logs import get_logger

CHANNELS = ("relay_runs", "relay_wishes", "relay_queue")
_CHECK_SECONDS = 10.0  # a connection that only listens does not notice by itself that its line is dead
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds before it listens again, at most: after one failure, after many
_log = get_logger(__name__)


class DatabaseAway(Exception):
    """The database cannot be reached, or did not answer in time. Whether the statement was carried out is not known;
    retry.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTimeouts:
    """The timeouts, in seconds. What takes longer is given up, so that a caller hears of it while it still matters."""

    connect: float = 2.0
    acquire: float = 2.0  #: for a free connection of the pool
    command: float = 10.0  #: of one statement, counted here
    statement: float = 9.0  #: of one statement, counted by the server
    lock: float = 3.0
    idle_in_transaction: float = 15.0
    idle: float = 20.0  #: of a dedicated connection: what it stands for passes on when its owner says nothing any more

    def settings(self) -> dict[str, str]:
        """Return the server settings, in milliseconds."""
        return {
            "application_name": "relay-coordinator",
            "statement_timeout": f"{self.statement * 1000:.0f}",
            "lock_timeout": f"{self.lock * 1000:.0f}",
            "idle_in_transaction_session_timeout": f"{self.idle_in_transaction * 1000:.0f}",
        }


_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server's goodbye was read, the end of its line not yet
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, crash recovery, statement_timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.ReadOnlySQLTransactionError,  # a demoted primary
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # it takes no connections, or is a standby
    asyncpg.InvalidCatalogNameError,  # it is not there: a copy is about to take its place
    PoolTimeout,
)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise DatabaseAway for errors which mean that the database is away, or that it gave up."""
    try:
        yield
    except _AWAY as error:
        raise DatabaseAway(str(error) or type(error).__name__) from error
    except DBAPIError as error:
        if isinstance(getattr(error.orig, "__cause__", None), _AWAY):
            raise DatabaseAway(str(error.orig)) from error
        raise


class Notifications:
    """Passes on what other transactions announce by NOTIFY to whoever waits for it in this process."""

    def __init__(self, url: str, timeouts: DatabaseTimeouts) -> None:
        self._url = url
        self._timeouts = timeouts
        self._waiting: defaultdict[tuple[str, str | None], set[asyncio.Event]] = defaultdict(set)

    @asynccontextmanager
    async def subscribe(self, channel: str, key: str | None = None) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set whenever `key` (None: anything) is announced on `channel`; the reader clears it.

        Subscribe, then read, then wait: nothing is missed. The event is also set when something may have been missed.
        """
        if channel not in CHANNELS:
            raise ValueError(f"nobody listens on {channel}")
        event = asyncio.Event()
        listeners = self._waiting[channel, key]
        listeners.add(event)
        try:
            yield event
        finally:
            listeners.discard(event)
            if not listeners and self._waiting.get((channel, key)) is listeners:
                del self._waiting[channel, key]

    async def run(self) -> None:
        """Listen forever, and reconnect after every interruption."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, Random())
        while True:
            try:
                await self._listen(backoff)
            except _AWAY as error:
                _log.warning("not listening to the database", reason=str(error) or type(error).__name__)
            await asyncio.sleep(backoff.next_pause())

    async def _listen(self, backoff: Backoff) -> None:
        """Listen until the connection ends; once it listens, the backoff starts over."""
        connection = await asyncpg.connect(
            self._url, timeout=self._timeouts.connect, command_timeout=self._timeouts.connect
        )
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            for channel in CHANNELS:
                await connection.add_listener(channel, self._told)
            backoff.reset()
            self._wake_all()
            while not await _wait_for(ended, _CHECK_SECONDS):
                await connection.fetchval("SELECT 1")
        finally:
            connection.terminate()

    def _told(self, _connection: object, _pid: int, channel: str, payload: str) -> None:
        for key in (payload, None):
            for event in self._waiting.get((channel, key), ()):
                event.set()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class DeploymentCheck:
    """Admits only connections to one deployment's database: the one that the first connection led to.

    Another database, or an empty one, in its place knows no lease. Its answers would end them all.
    """

    def __init__(self) -> None:
        self._known: UUID | None = None

    async def check(self, connection: asyncpg.Connection) -> None:
        """Raise DatabaseAway when this connection leads to another deployment."""
        try:
            found = await connection.fetchval("SELECT deployment_id FROM deployment")
        except asyncpg.UndefinedTableError:
            found = None
        if self._known not in (None, found):
            raise DatabaseAway(f"the database of deployment {found} answers, not that of {self._known}")
        self._known = found


class Database:
    """The database of one process, made by `connect_database`."""

    def __init__(
        self,
        url: str,
        pool: asyncpg.Pool,
        engine: AsyncEngine,
        timeouts: DatabaseTimeouts,
        recognition: DeploymentCheck,
    ) -> None:
        self.url = url
        self._recognition = recognition
        self.notifications = Notifications(url, timeouts)
        self._pool = pool
        self._engine = engine
        self._timeouts = timeouts

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection for single statements, each a transaction of its own."""
        with _translate_errors():
            connection = await self._pool.acquire(timeout=self._timeouts.acquire)
            try:
                yield connection
            finally:
                await self._pool.release(connection, timeout=self._timeouts.acquire)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Run one transaction: committed when the block ends, rolled back when it raises."""
        async with self.connection() as connection:
            with _translate_errors():
                async with connection.transaction():
                    yield connection

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Run one transaction by way of SQLAlchemy."""
        with _translate_errors():
            async with self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection outside the pool, for what lasts as long as its connection (an advisory lock).

        It must be used from time to time: a host that lost its power does not close its connections, and Postgres would
        wait for hours.
        """
        with _translate_errors():
            connection = await _open_connection(self.url, self._timeouts, self._recognition)
            try:
                await connection.execute(f"SET idle_session_timeout = {self._timeouts.idle * 1000:.0f}")
                yield connection
            finally:
                connection.terminate()

    async def ping(self) -> None:
        """Return when the database answers; DatabaseAway when it does not."""
        async with self.connection() as connection:
            await connection.fetchval("SELECT 1", timeout=self._timeouts.acquire)


async def _set_json_codecs(connection: asyncpg.Connection) -> None:
    """Convert jsonb columns to and from Python values; numbers that JSON lacks become text, such as "NaN"."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=_to_json, decoder=json.loads)


def _to_json(value: Any) -> str:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_make_storable(value))
    # Postgres takes neither NUL nor half a surrogate pair; both are rare enough to look for by their escapes.
    return text if "\\u0000" not in text and "\\ud" not in text else json.dumps(_make_storable(value))


def _make_storable(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case str():
            return make_storable_text(value)
        case dict():
            return {make_storable_text(str(key)): _make_storable(item) for key, item in value.items()}
        case list() | tuple():
            return [_make_storable(item) for item in value]
    return value


def make_storable_text(text: str) -> str:
    """Return the text without what Postgres cannot store."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


async def _open_connection(
    url: str, timeouts: DatabaseTimeouts, recognition: DeploymentCheck, **options: Any
) -> asyncpg.Connection:
    connection = await asyncpg.connect(
        url,
        timeout=timeouts.connect,
        command_timeout=timeouts.command,
        server_settings=timeouts.settings(),
        **options,
    )
    try:
        await recognition.check(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


@asynccontextmanager
async def connect_database(
    url: str, *, timeouts: DatabaseTimeouts | None = None, connections: int = 8
) -> AsyncIterator[Database]:
    """Connect to the database at `url` (`postgresql://…`) and listen to it, for as long as the block lasts.

    `connections` is the most that the pool and the engine each open: a few busy ones are faster than many. The pool
    opens them when needed, so a coordinator starts, and reports that its database is away, even while it is.
    """
    timeouts, recognition = timeouts or DatabaseTimeouts(), DeploymentCheck()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_pool(url, timeouts, recognition, connections))
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(_open_connection, url, timeouts, recognition),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=timeouts.acquire,
            pool_pre_ping=True,
        )
        stack.push_async_callback(engine.dispose)
        database = Database(url, pool, engine, timeouts, recognition)
        listening = asyncio.create_task(database.notifications.run(), name="notifications")
        stack.push_async_callback(_cancel, listening)
        yield database


@asynccontextmanager
async def _pool(
    url: str, timeouts: DatabaseTimeouts, recognition: DeploymentCheck, connections: int
) -> AsyncIterator[asyncpg.Pool]:
    async def begin(connection: asyncpg.Connection) -> None:
        await recognition.check(connection)
        await _set_json_codecs(connection)

    pool = asyncpg.create_pool(
        url,
        min_size=0,
        max_size=connections,
        init=begin,
        timeout=timeouts.connect,
        command_timeout=timeouts.command,
        server_settings=timeouts.settings(),
    )
    await pool
    try:
        yield pool
    finally:
        # Whoever used a connection has ended by now; a database that is away must not hold up the end.
        try:
            async with asyncio.timeout(timeouts.acquire):
                await pool.close()
        except (TimeoutError, *_AWAY):
            pool.terminate()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
