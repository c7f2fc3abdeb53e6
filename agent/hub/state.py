"""Every checkpoint's whole state on the Hub, as one more copy that the registry knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Never

from agent.checkpoints.publisher import LatestSlot, RegisteredCheckpoint
from agent.events.journal import Journal
from agent.folder import AttemptFolder
from relay.backoff import Backoff
from relay.errors import LeaseLost, RelayError
from relay.logs import get_logger
from runfile import Every
from storage.base import DamagedCopy, FolderKey, StoreRefused, StoreUnavailable
from storage.hub.store import HubStore

log = get_logger(__name__)

DAY = 86400.0

#: Adds a copy, of this scheme and at this uri, to a checkpoint's row.
Add = Callable[[RegisteredCheckpoint, str, str], Awaitable[None]]


class StateCopier:
    """Copies one attempt's states. Where saves come faster than they are sent, only the newest is sent."""

    def __init__(
        self,
        store: HubStore,
        folder: AttemptFolder,
        *,
        place: Callable[[int], FolderKey],
        every: Every,
        add: Add,
        journal: Journal,
        backoff: Backoff,
    ) -> None:
        self._store = store
        self._folder = folder
        self._place = place
        self._every = every
        self._add = add
        self._journal = journal
        self._backoff = backoff
        self._waiting: LatestSlot[RegisteredCheckpoint] = LatestSlot()
        self._announced = False
        self._failing = ""

    def offer(self, registered: RegisteredCheckpoint) -> None:
        """Queue a newer checkpoint."""
        self._waiting.put(registered)

    @property
    def needed(self) -> set[int]:
        """Return the steps whose folders are being read, or will be."""
        return {each.sealed.saved.step for each in (self._waiting.waiting, self._waiting.working) if each}

    async def drain(self) -> None:
        """Wait until nothing is being sent."""
        await self._waiting.drain()

    async def run(self) -> Never:
        """Copy until cancelled. Raises LeaseLost."""
        while True:
            await self._waiting.wait()
            with self._waiting.take() as registered:
                await self._announce_cost(registered.sealed.manifest.size)
                await self._copy(registered)

    async def _announce_cost(self, size: int) -> None:
        """Record what the copies cost, before the first byte is sent."""
        if not self._announced:
            self._announced = True
            await self._journal.record("info", f"hub.state: {describe_cost(size, self._every)}")

    async def _copy(self, registered: RegisteredCheckpoint) -> None:
        """Send until it is there, or until a newer one has replaced it."""
        step = registered.sealed.saved.step
        folder = self._folder.checkpoint(step)
        while True:
            try:
                uri = await self._store.put(
                    self._place(step), registered.sealed.manifest, lambda file: folder / file.path
                )
                await self._add(registered, self._store.scheme, uri)
            except LeaseLost:
                raise
            except StoreUnavailable as away:
                await self._record_failure(f"state cannot be kept on the Hub, and is tried again: {away}")
                await asyncio.sleep(self._backoff.next_pause(away.after))
                if self._waiting.waiting is None:
                    continue
            except (StoreRefused, DamagedCopy, RelayError, OSError) as error:
                await self._record_failure(f"the state of step {step} is not on the Hub: {error}")
            else:
                self._failing = ""
                log.info("checkpoint copied", checkpoint=registered.name, uri=uri)
            return

    async def _record_failure(self, text: str) -> None:
        if text != self._failing:
            self._failing = text
            await self._journal.record("error", text)


async def remove_unregistered(
    store: HubStore, place: FolderKey, known: Callable[[], Awaitable[Collection[str] | None]]
) -> None:
    """Delete what hosts that died had uploaded and could not register; what cannot be done now, the next attempt does.

    `known` are the uris that the registry names; None when it cannot be asked.
    """
    try:
        uris = await known()
        swept = 0 if uris is None else await store.sweep(place, uris)
    except (StoreUnavailable, StoreRefused, DamagedCopy, OSError) as error:
        log.info("state not swept", reason=error)
    else:
        log.info("state swept", freed=swept)


def describe_cost(size: int, every: Every) -> str:
    """Return in words what keeping state costs. Pure."""
    if every.seconds is None:
        return f"each save is {_format_size(size)}, one every {every}"
    minutes = f"{every.seconds / 60:g} min" if every.seconds >= 60 else f"{every.seconds:g} s"
    return f"each save is {_format_size(size)}, one every {minutes}: {_format_size(size * DAY / every.seconds)} a day"


def _format_size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
