"""Which uploads have begun and not ended, on this host's disk: what they leave behind is removed, whatever dies.

An attempt whose lease is held goes on with what it left. Otherwise nobody does: it is removed when the attempt ends, or
by the agent that comes after.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from agent.folder import write_atomically
from storage.base import Discards, Store, StoreAway, StoreRefused
from storage.threads import in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Records in a folder; `open_store` makes the store of a base."""

    folder: Path
    open_store: Callable[[str], Store]

    def begin(self, lease: str, base: str, uri: str) -> None:
        """From before the first byte. Blocking."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._record(uri), json.dumps({"lease": lease, "base": base, "uri": uri}).encode())

    def end(self, uri: str) -> None:
        """It is whole. Blocking."""
        self._record(uri).unlink(missing_ok=True)

    async def settle(self, ended: Callable[[str], bool]) -> None:
        """Remove what uploads of leases that have ended left. A store that is away keeps it for the next time."""
        for lease, base, uri in await in_thread(self._all):
            if ended(lease):
                try:
                    store = self.open_store(base)
                    if isinstance(store, Discards):
                        await store.discard(uri)
                    await in_thread(self.end, uri)
                except (StoreAway, StoreRefused, OSError) as error:
                    log.warning("upload=left uri=%s reason=%r", uri, str(error))

    def _all(self) -> Collection[tuple[str, str, str]]:
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                said = json.loads(path.read_bytes())
                found.append((str(said["lease"]), str(said["base"]), str(said["uri"])))
        return found

    def _record(self, uri: str) -> Path:
        return self.folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.json"
