"""What the simulated database stores: committed rows, open transactions with their locks, and its identity.

The semantics are those of Postgres under READ COMMITTED, as far as Relay's statements rely on them. A transaction's
writes are visible to itself alone until it commits. A row that it has locked or written stays locked until it ends;
waiting transactions get the row in the order in which they asked. The same holds for transactions that insert what
another one has inserted into, or deleted from, a unique index and not committed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from coordinator.database.connections import DatabaseAway, DatabaseTimeouts
from coordinator.store.deployment import DatabaseIdentity
from tests.simulation.store.tables import LOOKED_UP, TABLES, Key, Row, Sources

if TYPE_CHECKING:
    from tests.simulation.store.database import SimulatedConnection, SimulatedDatabase
    from tests.simulation.store.execution import Execution

Slot = tuple[str, Any]  #: a unique index and a value in it


@dataclass(frozen=True, slots=True)
class Changed:
    """A row that a commit made, changed (`before` is what it was) or took away (`after` is None)."""

    table: str
    key: Key
    before: Row | None
    after: Row | None


Observer = Callable[[Sequence[Changed]], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All committed rows of a moment."""

    tables: Mapping[str, Mapping[Key, Row]]

    def migrated(self, identity: DatabaseIdentity) -> Snapshot:
        """With what the migration has written down: which database this is, also before a coordinator has looked."""
        known = {
            key: row if row["system_identifier"] else {**row, **_written(identity)}
            for key, row in self.tables["deployment"].items()
        }
        return Snapshot({**self.tables, "deployment": known})


def _written(identity: DatabaseIdentity) -> Row:
    return {"system_identifier": identity.system, "database_oid": identity.oid, "timeline": identity.timeline}


@dataclass(slots=True, eq=False)
class Lock:
    """Of one row: who has it, and who waits for it."""

    owner: Transaction
    waiting: deque[tuple[Transaction, asyncio.Future[None]]] = field(default_factory=deque)

    def blockers(self, until: Transaction) -> list[Transaction]:
        """Whom a transaction in the queue waits for."""
        ahead = []
        for waiter, future in self.waiting:
            if waiter is until:
                break
            if not future.done():
                ahead.append(waiter)
        return [self.owner, *ahead]


@dataclass(slots=True, eq=False)
class Transaction:
    """One that is open, or was."""

    storage: Storage
    connection: SimulatedConnection
    writes: dict[str, dict[Key, Row | None]] = field(default_factory=dict)
    taken: dict[Slot, bool] = field(default_factory=dict)  #: in unique indexes: True put in, False taken out
    locks: dict[tuple[str, Key], Lock] = field(default_factory=dict)
    notices: dict[tuple[str, str], None] = field(default_factory=dict)
    followers: list[asyncio.Future[None]] = field(default_factory=list)  #: of those who wait for its end
    waits_for: Callable[[], Sequence[Transaction]] | None = None
    waits_by: asyncio.Future[None] | None = None
    over: bool = False
    failed: bool = False

    def check(self) -> None:
        """DatabaseAway when it has ended behind its owner's back."""
        if self.over:
            raise DatabaseAway("the connection was closed in the middle of the transaction")


class Storage:
    """One database, which several processes share by a `SimulatedDatabase` each.

    `now` is the database's clock; ids are drawn from `random`. `identity` may be set to another: a failover, or a copy.
    `lock_timeout` is in seconds of the loop's time.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        random: Random,
        identity: DatabaseIdentity | None = None,
        lock_timeout: float = DatabaseTimeouts().lock,
    ) -> None:
        self.now = now
        self.lock_timeout = lock_timeout
        self.identity = identity or DatabaseIdentity("1", 1, 1)
        self.observers: list[Observer] = []
        self.databases: dict[SimulatedDatabase, None] = {}
        self.deadlocks = 0  #: that were broken; Relay's order of locks leaves none
        self.tables: dict[str, dict[Key, Row]] = {name: {} for name in TABLES}
        self.open: dict[Transaction, None] = {}
        self.locks: dict[tuple[str, Key], Lock] = {}
        self.advisory: dict[int, SimulatedConnection] = {}  #: by key, who has the lock
        self.waiting: dict[Execution, None] = {}  #: statements in the middle, which go on seeing what they saw
        self.unique: dict[Slot, Key] = {}
        self.touched: dict[Slot, dict[Transaction, None]] = {}  #: by transactions that have not committed
        self._random = random
        self._away = False
        self._numbers = dict.fromkeys(TABLES, 0)
        self._lookup: dict[tuple[str, str], dict[Any, dict[Key, None]]] = {}
        self._look_up_anew()
        self.sources = Sources(now, self.new_id)
        deployment = TABLES["deployment"].row({}, self.sources)
        self.tables["deployment"][True] = deployment

    def new_id(self) -> UUID:
        """A random one, never given out before."""
        return UUID(int=self._random.getrandbits(128), version=4)

    def next_number(self, table: str) -> int:
        """Counts on, whatever becomes of the transaction."""
        self._numbers[table] += 1
        return self._numbers[table]

    def rows(self, table: str) -> list[Row]:
        """All that are committed."""
        return list(self.tables[table].values())

    @property
    def away(self) -> bool:
        """While it is, every statement is DatabaseAway; connections, open transactions and advisory locks are lost."""
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        self._away = away
        if away:
            self._break_connections()
        else:
            for database in self.databases:
                database.notifications.wake_everybody()

    def snapshot(self) -> Snapshot:
        """What is committed now."""
        return Snapshot({name: dict(rows) for name, rows in self.tables.items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a moment: what was committed since is lost. Connections are, too; ids are not drawn again."""
        self._break_connections()
        self.tables = {name: dict(rows) for name, rows in snapshot.tables.items()}
        self._look_up_anew()
        for database in self.databases:
            database.notifications.wake_everybody()

    def _break_connections(self) -> None:
        for database in self.databases:
            database.sever()

    def let_go(self, database: SimulatedDatabase) -> None:
        """What all connections of a process have open and locked."""
        for transaction in [each for each in self.open if each.connection.database is database]:
            self.rollback(transaction)
        self.advisory = {key: each for key, each in self.advisory.items() if each.database is not database}

    def unlock_advisory(self, connection: SimulatedConnection) -> None:
        """What one connection has."""
        self.advisory = {key: each for key, each in self.advisory.items() if each is not connection}

    # transactions

    def begin(self, connection: SimulatedConnection) -> Transaction:
        """A new transaction on a connection."""
        transaction = Transaction(self, connection)
        self.open[transaction] = None
        return transaction

    def commit(self, transaction: Transaction) -> None:
        """Makes its writes everybody's, and tells who listens."""
        transaction.check()
        changes = [
            Changed(table, key, self.tables[table].get(key), row)
            for table, rows in transaction.writes.items()
            for key, row in rows.items()
        ]
        for execution in self.waiting:
            execution.keep_seeing(changes)
        for change in changes:
            self._apply(change)
        self._end(transaction)
        if changes:
            for observer in tuple(self.observers):
                observer(changes)
        for channel, payload in transaction.notices:
            for database in self.databases:
                database.notifications.announce(channel, payload)

    def rollback(self, transaction: Transaction) -> None:
        """Forgets it, unless it has ended."""
        if transaction.over:
            return
        if transaction.waits_by is not None and not transaction.waits_by.done():
            transaction.waits_by.set_exception(DatabaseAway("the connection was closed"))
        self._end(transaction)

    def _apply(self, change: Changed) -> None:
        table, rows = TABLES[change.table], self.tables[change.table]
        if change.after is None:
            rows.pop(change.key, None)
        else:
            rows[change.key] = change.after
        for unique in table.uniques:
            before, after = unique.value(change.before), unique.value(change.after)
            if before is not None and before != after:
                self.unique.pop((unique.name, before), None)
            if after is not None:
                self.unique[unique.name, after] = change.key

    def _end(self, transaction: Transaction) -> None:
        transaction.over = True
        del self.open[transaction]
        for slot in transaction.taken:
            others = self.touched[slot]
            del others[transaction]
            if not others:
                del self.touched[slot]
        for row, lock in transaction.locks.items():
            self._hand_over(row, lock)
        for future in transaction.followers:
            if not future.done():
                future.set_result(None)

    def _hand_over(self, row: tuple[str, Key], lock: Lock) -> None:
        while lock.waiting:
            waiter, future = lock.waiting.popleft()
            if not future.done() and not waiter.over:
                lock.owner = waiter
                waiter.locks[row] = lock
                future.set_result(None)
                return
        del self.locks[row]

    # looking rows up

    def candidates(self, table: str, column: str, value: Any) -> Iterator[Key]:
        """Keys of rows that have the value, or may have had it."""
        return iter(tuple(self._lookup[table, column].get(value, ())))

    def note(self, table: str, key: Key, row: Row) -> None:
        """Lets a row be looked up, whether it will be committed or not."""
        for column in LOOKED_UP.get(table, ()):
            self._lookup[table, column].setdefault(row[column], {})[key] = None

    def _look_up_anew(self) -> None:
        self._lookup = {(table, column): {} for table, columns in LOOKED_UP.items() for column in columns}
        self.unique = {}
        for name, rows in self.tables.items():
            for key, row in rows.items():
                self.note(name, key, row)
                for unique in TABLES[name].uniques:
                    if (value := unique.value(row)) is not None:
                        self.unique[unique.name, value] = key
