"""One statement within a transaction: what it sees, and how it locks and writes rows.

It sees what was committed when it began and what its own transaction has written. After it had to wait for a lock it
still sees that; only the row that it waited for is read again in its current version, which must still match the
condition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.database.connections import DatabaseAway
from coordinator.store.deployment import DatabaseIdentity
from tests.simulation.store.storage import Changed, Lock, Slot, Transaction
from tests.simulation.store.tables import TABLES, Key, Row


class Execution:
    """Made for each statement."""

    __slots__ = ("_before", "_storage", "_transaction")

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._storage = transaction.storage
        self._before: dict[str, dict[Key, Row | None]] = {}  #: rows as it saw them, where they have changed since

    @property
    def now(self) -> datetime:
        """The database's clock."""
        return self._storage.now()

    @property
    def identity(self) -> DatabaseIdentity:
        """Which database this is."""
        return self._storage.identity

    def lock_advisory(self, key: int) -> bool:
        """Takes an advisory lock for the connection, unless another has it."""
        connection = self._transaction.connection
        return self._storage.advisory.setdefault(key, connection) is connection

    def new_id(self) -> UUID:
        """A random id."""
        return self._storage.new_id()

    def notify(self, channel: str, payload: str) -> None:
        """Notify the listeners when the transaction commits, once."""
        self._transaction.notices[channel, payload] = None

    # reading

    def get(self, table: str, key: Key) -> Row | None:
        """One row."""
        own = self._transaction.writes.get(table)
        if own is not None and key in own:
            return own[key]
        if self._before and key in (before := self._before.get(table, {})):
            return before[key]
        return self._storage.tables[table].get(key)

    def rows(self, table: str) -> list[Row]:
        """All rows."""
        own, before = self._transaction.writes.get(table), self._before.get(table)
        committed = self._storage.tables[table]
        if own or before:
            committed = {**committed, **(before or {}), **(own or {})}  # type: ignore[dict-item]
            return [row for row in committed.values() if row is not None]
        return list(committed.values())

    def where(self, table: str, column: str, value: Any) -> list[Row]:
        """Rows that have a value in one of the columns that are looked up by."""
        found = (self.get(table, key) for key in self._storage.candidates(table, column, value))
        return [row for row in found if row is not None and row[column] == value]

    def keep_seeing(self, changes: Sequence[Changed]) -> None:
        """Others have committed changes while it waits."""
        for change in changes:
            self._before.setdefault(change.table, {}).setdefault(change.key, change.before)

    # locking

    async def lock(
        self, table: str, row: Row, still: Callable[[Row], bool] | None = None, *, skip_locked: bool = False
    ) -> Row | None:
        """The row, locked, as it is by then; None when it is gone, or not `still` what was asked for."""
        key = TABLES[table].key(row)
        if not await self._acquire(table, key, wait=not skip_locked):
            return None
        newest = self._newest(table, key)
        if newest is row:
            return row
        return newest if newest is not None and (still is None or still(newest)) else None

    async def lock_all(self, table: str, rows: Iterable[Row], still: Callable[[Row], bool] | None = None) -> list[Row]:
        """Those of the rows, one after the other."""
        return [locked for row in rows if (locked := await self.lock(table, row, still)) is not None]

    def _newest(self, table: str, key: Key) -> Row | None:
        own = self._transaction.writes.get(table)
        if own is not None and key in own:
            return own[key]
        return self._storage.tables[table].get(key)

    async def _acquire(self, table: str, key: Key, *, wait: bool) -> bool:
        """Take a lock; without `wait`, False when another transaction has it. DatabaseAway when disconnected."""
        self._transaction.check()
        mine, locks = self._transaction.locks, self._storage.locks
        if (table, key) in mine:
            return True
        lock = locks.get((table, key))
        if lock is None:
            mine[table, key] = locks[table, key] = Lock(self._transaction)
            return True
        if not wait:
            return False
        future = asyncio.get_running_loop().create_future()
        lock.waiting.append((self._transaction, future))
        await self._wait(future, lambda: lock.blockers(self._transaction))
        self._transaction.check()
        return True

    async def _wait(self, future: asyncio.Future[None], blockers: Callable[[], Sequence[Transaction]]) -> None:
        transaction, storage = self._transaction, self._storage
        transaction.waits_for, transaction.waits_by = blockers, future
        storage.waiting[self] = None
        timer = asyncio.get_running_loop().call_later(storage.lock_timeout, _give_up, future)
        try:
            if _waits_for_itself(transaction):
                storage.deadlocks += 1
                future.cancel()
                raise DatabaseAway("deadlock detected")
            await future
        finally:
            timer.cancel()
            transaction.waits_for = transaction.waits_by = None
            del storage.waiting[self]

    # writing

    def write(self, table: str, row: Row, **changes: Any) -> Row:
        """A locked row with other values."""
        known, key = TABLES[table], TABLES[table].key(row)
        assert (table, key) in self._transaction.locks, f"{table} {key} is not locked"
        changed = {**row, **changes}
        for unique in known.uniques:
            if (value := unique.value(row)) is not None and value != unique.value(changed):
                self._touch((unique.name, value), put=False)
        self._transaction.writes.setdefault(table, {})[key] = changed
        return changed

    async def update(
        self, table: str, rows: Iterable[Row], still: Callable[[Row], bool] | None = None, **changes: Any
    ) -> list[Row]:
        """Locks rows one after the other, and writes the same into each; as they are then."""
        locked = await self.lock_all(table, rows, still)
        return [self.write(table, row, **changes) for row in locked]

    async def delete(self, table: str, row: Row) -> None:
        """Takes a row away, unless it is gone by the time that it is locked."""
        if (locked := await self.lock(table, row)) is not None:
            key = TABLES[table].key(locked)
            self._touch((table, key), put=False)
            self._transaction.writes.setdefault(table, {})[key] = None

    async def insert(self, table: str, **values: Any) -> Row:
        """A new row; UniqueViolationError when there is one like it."""
        row = await self.insert_new(table, **values)
        if row is None:
            raise asyncpg.UniqueViolationError(f"duplicate key value violates a unique constraint of {table}")
        return row

    async def insert_new(self, table: str, **values: Any) -> Row | None:
        """A new row; None when there is one like it. Waits for those who write one like it just now."""
        known = TABLES[table]
        if known.numbered:
            values["id"] = self._storage.next_number(table)
        row = known.row(values, self._storage.sources)
        key = known.key(row)
        slots: list[Slot] = [(table, key)]
        slots += [(unique.name, value) for unique in known.uniques if (value := unique.value(row)) is not None]
        for slot in slots:
            if await self._is_taken(table, slot):
                return None
        for slot in slots:
            self._touch(slot, put=True)
        self._transaction.writes.setdefault(table, {})[key] = row
        self._storage.note(table, key, row)
        return row

    async def _is_taken(self, table: str, slot: Slot) -> bool:
        """By a committed row, or one of the transaction's own; whatever others are doing there is waited for."""
        transaction, storage = self._transaction, self._storage
        while (rival := self._rival(table, slot)) is not None:
            await self._follow(rival)
        if slot in transaction.taken:
            return transaction.taken[slot]
        name, value = slot
        return value in storage.tables[name] if name in TABLES else slot in storage.unique

    async def _follow(self, rival: Transaction) -> None:
        """Until it has ended."""
        future = asyncio.get_running_loop().create_future()
        rival.followers.append(future)
        await self._wait(future, lambda: [rival])

    def _rival(self, table: str, slot: Slot) -> Transaction | None:
        """Another transaction that puts something there, or takes it away, or writes what is there, whatever it is."""
        for other in self._storage.touched.get(slot, ()):
            if other is not self._transaction:
                return other
        key = slot[1] if slot[0] == table else self._storage.unique.get(slot)
        lock = self._storage.locks.get((table, key))
        if lock is None or lock.owner is self._transaction or key not in lock.owner.writes.get(table, ()):
            return None
        return lock.owner

    def _touch(self, slot: Slot, *, put: bool) -> None:
        self._transaction.taken[slot] = put
        self._storage.touched.setdefault(slot, {})[self._transaction] = None


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(DatabaseAway("canceling statement due to lock timeout"))


def _waits_for_itself(transaction: Transaction) -> bool:
    """Whether those it waits for wait, in the end, for it."""
    seen: list[Transaction] = []
    ahead = list(transaction.waits_for() if transaction.waits_for else ())
    while ahead:
        other = ahead.pop()
        if other is transaction:
            return True
        if other not in seen:
            seen.append(other)
            ahead += other.waits_for() if other.waits_for else ()
    return False
