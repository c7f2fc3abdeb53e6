"""The simulated database and a real one, driven alike: the same clock, the same ids, and then the same rows.

The real one takes its time and its ids from the test, by functions that its `search_path` finds before its own.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from random import Random
from typing import Any, ParamSpec, TypeVar

import asyncpg

from coordinator.database.connections import CHANNELS, Database, DatabaseTimeouts, connect_database
from coordinator.database.postgres import Cluster
from coordinator.database.tables import Base
from coordinator.store import deployment
from coordinator.store.statement import Interpreter, Statement
from tests.conftest import cloned
from tests.simulation.store.database import SimulatedDatabase, SimulatedNotifications
from tests.simulation.store.storage import Storage
from tests.simulation.store.tables import TABLES, Key, Row

P = ParamSpec("P")
R = TypeVar("R")
_PATIENT = DatabaseTimeouts(connect=60, acquire=60, command=60, statement=60, lock=60, idle_in_transaction=60, idle=60)
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)

_OURS = """
CREATE SCHEMA ours;
CREATE TABLE ours.clock (now timestamptz NOT NULL);
INSERT INTO ours.clock VALUES ('{beginning}');
CREATE SEQUENCE ours.ids;
CREATE FUNCTION ours.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT now FROM ours.clock';
CREATE FUNCTION ours.gen_random_uuid() RETURNS uuid LANGUAGE sql VOLATILE AS
  $$ SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(nextval('ours.ids')), 12, '0'))::uuid $$;
"""


class Counting(Random):
    """Ids in their order, as the real database draws them here."""

    drawn = 0

    def getrandbits(self, k: int, /) -> int:
        """The next."""
        self.drawn += 1
        return self.drawn


class Recorded(Interpreter):
    """A connection that notes what statements came by, and what came of them."""

    def __init__(self, connection: Any, record: Callable[[Statement[..., Any], object], None]) -> None:
        self._connection = connection
        self._record = record

    async def carry_out(self, statement: Statement[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As the connection does it."""
        try:
            result = await statement(self._connection, *args, **kwargs)
        except asyncpg.PostgresError as error:
            self._record(statement, plain(error))
            raise
        self._record(statement, plain(result))
        return result


class RecordedDatabase:
    """A database as commands see it. `said` is what statements returned since the last comparison."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.notifications = database.notifications
        self.reached: set[Statement[..., Any]] = set()
        self.said: list[tuple[str, object]] = []

    def _record(self, statement: Statement[..., Any], result: object) -> None:
        self.reached.add(statement)
        self.said.append((statement.name, result))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Recorded]:
        """As the database has it."""
        async with self._database.connection() as connection:
            yield Recorded(connection, self._record)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Recorded]:
        """As the database has it."""
        async with self._database.transaction() as connection:
            yield Recorded(connection, self._record)

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Recorded]:
        """As the database has it."""
        async with self._database.dedicated() as connection:
            yield Recorded(connection, self._record)


class Abandoned(Exception):
    """What rolls a transaction back that was held up."""


class HeldUp:
    """A database in which one transaction does everything except commit until it is released, and then waits again."""

    def __init__(self, database: Any, which: int, *, commit: bool) -> None:
        self._database = database
        self._before = which  #: transactions that are let through first
        self._commit = commit
        self.notifications = database.notifications
        self.connection, self.dedicated = database.connection, database.dedicated
        self.written, self.end, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """The one, or one before or after it."""
        self._before -= 1
        if self._before != -1:
            async with self._database.transaction() as connection:
                yield connection
            return
        try:
            async with self._database.transaction() as connection:
                yield connection
                self.written.set()
                await self.end.wait()
                if not self._commit:
                    raise Abandoned
        finally:
            if self.written.is_set():
                await self.go_on.wait()


class Heard(SimulatedNotifications):
    """Notes what is announced."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, str]] = []

    def announce(self, channel: str, payload: str) -> None:
        """One more."""
        self.all.append((channel, payload))


Act = Callable[[Any], Awaitable[object]]  #: on a database


@dataclass(frozen=True)
class Met:
    """What came of two acts, and whether the second had to wait for the first."""

    first: object
    second: object
    waited: bool


@dataclass
class Twins:
    """Both databases, with what both are compared by."""

    real: RecordedDatabase
    simulated: RecordedDatabase
    storage: Storage  #: of the simulated one
    operator: asyncpg.Connection  #: of the real one, and listening
    heard: Heard
    now: datetime = BEGINNING
    told: list[tuple[str, str]] = field(default_factory=list)

    async def pass_time(self, seconds: float) -> None:
        """On both clocks; also back."""
        self.now += timedelta(seconds=seconds)
        await self.operator.execute("UPDATE ours.clock SET now = $1", self.now)

    async def set(self, table: str, key: Key, **changes: Any) -> None:
        """Changes a row behind everybody's back."""
        names = [column.name for column in Base.metadata.tables[table].primary_key.columns]
        keys = [key] if len(names) == 1 else list(key)
        changed = ", ".join(f'"{name}" = ${len(keys) + place}' for place, name in enumerate(changes, 1))
        which = " AND ".join(f'"{name}" = ${place}' for place, name in enumerate(names, 1))
        await self.operator.execute(f"UPDATE {table} SET {changed} WHERE {which}", *keys, *changes.values())
        rows = self.storage.tables[table]
        rows[key] = {**rows[key], **changes}

    async def agree(self, act: Act) -> object:
        """Lets both do the same, one after the other; what came of it is the same, and all rows are afterwards."""
        real, simulated = await outcome(act(self.real)), await outcome(act(self.simulated))
        assert simulated == real, f"\n{simulated}\n{real}"
        await self.compare()
        return simulated

    async def overlap(self, first: Act, second: Act, *, which: int = 0, commit: bool = True) -> Met:
        """While a transaction of the first is all written, the second comes; what both did, which is the same.

        When the second is done or has to wait, the first commits, or rolls back. What it has to do in other
        transactions it does when the second is done.
        """
        held_up = HeldUp(self.real, which, commit=commit), HeldUp(self.simulated, which, commit=commit)
        real = await _overlap(held_up[0], first, second(self.real), self._waits)
        simulated = await _overlap(held_up[1], first, second(self.simulated), self._simulated_waits)
        assert simulated == real, f"\n{simulated}\n{real}"
        await self.compare()
        return simulated

    async def _waits(self) -> bool:
        """A moment's wait for autovacuum, which locks tables too, is none."""
        query = """SELECT count(*) > 0 FROM pg_stat_activity AS waiting
                   JOIN pg_stat_activity AS blocking ON blocking.pid = ANY (pg_blocking_pids(waiting.pid))
                   WHERE waiting.datname = current_database() AND waiting.wait_event_type = 'Lock'
                     AND blocking.backend_type = 'client backend'"""
        return bool(await self.operator.fetchval(query))

    async def _simulated_waits(self) -> bool:
        return bool(self.storage.waiting)

    async def compare(self) -> None:
        """What every statement answered, every row of every table, and all that was announced."""
        for real, simulated in zip_longest(self.real.said, self.simulated.said):
            assert simulated == real, f"\n{simulated}\n{real}"
        self.real.said.clear()
        self.simulated.said.clear()
        for name, table in TABLES.items():
            found = {table.key(row): numbers(row) for row in await self.operator.fetch(f"SELECT * FROM {name}")}
            simulated = {key: numbers(row) for key, row in self.storage.tables[name].items()}
            keys = [key for key in {**found, **simulated} if simulated.get(key) != found.get(key)]
            assert not keys, "\n".join(f"{name}\n{simulated.get(key)}\n{found.get(key)}" for key in keys)
        await asyncio.sleep(0)  # what came with the answers is told
        assert sorted(self.heard.all) == sorted(self.told)
        self.heard.all.clear()
        self.told.clear()


async def _overlap(held_up: HeldUp, first: Act, second: Awaitable[object], waits: Callable[[], Awaitable[bool]]) -> Met:
    one = asyncio.create_task(outcome(first(held_up)))
    written = asyncio.create_task(held_up.written.wait())
    await asyncio.wait([one, written], return_when=asyncio.FIRST_COMPLETED)
    written.cancel()
    two = asyncio.create_task(outcome(second))
    while not two.done() and not await waits():  # only the database knows
        await asyncio.sleep(0)
    waited = not two.done()
    held_up.end.set()
    result = await two
    held_up.go_on.set()
    return Met(await one, result, waited)


def numbers(row: Mapping[str, Any]) -> Row:
    """The row, with a word for what is not equal to itself."""
    if "points" not in row:
        return dict(row)
    return {**row, "points": ["NaN" if math.isnan(point) else point for point in row["points"]]}


async def outcome(act: Awaitable[object]) -> object:
    """What it returns, or raises, as something that can be compared."""
    try:
        return plain(await act)
    except AssertionError:
        raise
    except Exception as error:  # whatever it is, the other must raise it too
        return plain(error)


def plain(value: Any) -> object:
    """Return a value without the particulars of its types; desired leases unordered, since several may be granted at
    once.
    """
    match value:
        case asyncpg.PostgresError():
            return type(value).__name__
        case Exception():
            return type(value).__name__, str(value)
        case _ if is_dataclass(value):
            return type(value).__name__, [plain(getattr(value, each.name)) for each in fields(value)]
        case Mapping() | asyncpg.Record():
            return {key: plain(item) for key, item in sorted(value.items())}  # one order, also for repr below
        case list() | tuple() | set():
            return sorted((plain(item) for item in value), key=repr)
    return value


@asynccontextmanager
async def twins(cluster: Cluster) -> AsyncIterator[Twins]:
    """Two empty databases, of one identity."""
    async with cloned(cluster) as url:
        operator = await asyncpg.connect(url)
        try:
            await _take_over(operator)
            async with connect_database(url, timeouts=_PATIENT) as database:
                yield await _twins(operator, database)
        finally:
            await operator.close()


async def _take_over(operator: asyncpg.Connection) -> None:
    name = await operator.fetchval("SELECT current_database()")
    await operator.execute(_OURS.format(beginning=BEGINNING.isoformat()))
    await operator.execute(f"ALTER DATABASE {name} SET search_path = ours, public, pg_catalog")
    await operator.execute("SET search_path = ours, public, pg_catalog")
    for table in TABLES.values():
        for column in table.times:
            await operator.execute(f"ALTER TABLE {table.name} ALTER {column} SET DEFAULT ours.clock_timestamp()")
        for column in table.ids:
            await operator.execute(f"ALTER TABLE {table.name} ALTER {column} SET DEFAULT ours.gen_random_uuid()")
    await operator.execute("DELETE FROM deployment; INSERT INTO deployment DEFAULT VALUES")


async def _twins(operator: asyncpg.Connection, database: Database) -> Twins:
    identity = await deployment.read_identity(operator)
    clock: list[Twins] = []
    storage = Storage(now=lambda: clock[0].now if clock else BEGINNING, random=Counting(), identity=identity)
    simulated = RecordedDatabase(SimulatedDatabase(storage))
    made = Twins(RecordedDatabase(database), simulated, storage, operator, Heard())
    clock.append(made)
    listening = SimulatedDatabase(storage)
    listening.notifications = made.heard
    for channel in CHANNELS:
        await operator.add_listener(channel, lambda _c, _p, channel, payload: made.told.append((channel, payload)))
    for name in ("json", "jsonb"):
        await operator.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return made
