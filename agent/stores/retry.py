"""Waits for a store that is away, and delays only what is to be stored there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from agent.events.journal import Journal
from relay.backoff import Backoff
from relay.logs import get_logger
from storage.base import StoreUnavailable

log = get_logger(__name__)
T = TypeVar("T")


FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  #: seconds; bounds of the pauses between two tries
TELL_AFTER = 30.0  #: seconds of failing after which the run's history records it


@dataclass(slots=True)
class StoreRetry:
    """The retries of one attempt. `now` is a clock in seconds."""

    journal: Journal
    now: Callable[[], float]
    first_pause: float = FIRST_PAUSE
    longest_pause: float = LONGEST_PAUSE
    tell_after: float = TELL_AFTER
    random: Random = field(default_factory=Random)

    async def run(
        self, doing: str, work: Callable[[], Awaitable[T]], until: Callable[[], Awaitable[object]] | None = None
    ) -> T | None:
        """Return what `work` returns, however often its store is away; None when `until` came before it was back.

        A store that says when to come back is taken at its word. After a while one event records that it fails, and one
        later that it works again.
        """
        began, told = self.now(), False
        backoff = Backoff(self.first_pause, self.longest_pause, self.random)
        while True:
            try:
                done = await work()
            except StoreUnavailable as error:
                pause = backoff.next_pause(error.after)
                log.warning("store out of reach", doing=doing, tries=backoff.failures, reason=error)
                if not told and self.now() - began >= self.tell_after:
                    told = True
                    await self.journal.record(
                        "warning", f"{doing} fails, and is tried again: {error}", "upload_failing"
                    )
            else:
                if told:
                    await self.journal.record("info", f"{doing} works again")
                return done
            if await _wait_within(until, pause):
                return None


async def _wait_within(until: Callable[[], Awaitable[object]] | None, within: float) -> bool:
    """Return whether the event came within so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await (until() if until is not None else asyncio.Event().wait())
            return True
    return False
