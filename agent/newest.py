"""A place for one thing, where a newer one takes the older one's place: how a backlog keeps only the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """One producer puts, one consumer takes and works on it; `settled` is when nothing waits or is worked on."""

    def __init__(self) -> None:
        self._item: T | None = None
        self._there = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self.working: T | None = None

    def put(self, item: T) -> None:
        """Leave it here; what lay here unworked is forgotten."""
        self._item = item
        self._there.set()
        self._settled.clear()

    @property
    def waiting(self) -> T | None:
        return self._item

    async def ready(self) -> None:
        """Until something lies here."""
        await self._there.wait()

    @contextmanager
    def take(self) -> Iterator[T]:
        """Work on what lies here."""
        assert self._item is not None
        self.working, self._item = self._item, None
        self._there.clear()
        try:
            yield self.working
        finally:
            self.working = None
            if self._item is None:
                self._settled.set()

    async def settled(self) -> None:
        """Until nothing lies here and nothing is worked on."""
        await self._settled.wait()
