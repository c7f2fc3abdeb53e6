"""Waiting for a store that is away: it delays, and blocks nothing but what is to go there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from agent.events.journal import Journal
from storage.base import StoreAway

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Seconds. Between two tries it rests for a random part of what doubles from `first` to `longest`."""

    first: float = 0.5
    longest: float = 60.0
    tell_after: float = 30.0  #: for how long it fails until people are told

    def before(self, tries: int, random: Random) -> float:
        """Full jitter: many hosts do not come back to a store at one moment."""
        return random.uniform(0.0, min(self.longest, self.first * 2.0 ** min(tries, 30)))


@dataclass(slots=True)
class Patience:
    """One attempt's. `now` is a clock in seconds."""

    journal: Journal
    now: Callable[[], float]
    pauses: Pauses = field(default_factory=Pauses)
    random: Random = field(default_factory=Random)

    async def outlast(
        self, doing: str, work: Callable[[], Awaitable[T]], until: Callable[[], Awaitable[object]] | None = None
    ) -> T | None:
        """What `work` comes to, however often its store is away; None when `until` came before it was back.

        A store that says when to come back is taken at its word. After a while one event says that it fails, and one
        later that it works.
        """
        began, told, tries = self.now(), False, 0
        while True:
            try:
                done = await work()
            except StoreAway as error:
                pause = max(error.after, self.pauses.before(tries, self.random))
                log.warning("store=away doing=%r tries=%d reason=%r", doing, tries, str(error))
                if not told and self.now() - began >= self.pauses.tell_after:
                    told = True
                    await self.journal.say("warning", f"{doing} fails, and is tried again: {error}", "upload_failing")
            else:
                if told:
                    await self.journal.say("info", f"{doing} works again")
                return done
            if await _came(until, pause):
                return None
            tries += 1


async def _came(until: Callable[[], Awaitable[object]] | None, within: float) -> bool:
    """Whether it came within so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await (until() if until is not None else asyncio.Event().wait())
            return True
    return False
