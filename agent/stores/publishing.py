"""The store that an attempt publishes to, as its run file names it: waited for, and counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from agent.stores.retry import StoreRetry
from agent.stores.transfers import Transfers, count_into
from relay.v1 import fleet_pb2
from runfile import RunFile
from storage.base import FolderKey, LocateFile, Store, StoreRefused
from storage.hub.store import HubStore
from storage.layout import Layout
from storage.manifest import Manifest
from storage.stores import open_store
from storage.throttling import RateLimit


def open_run_store(run: RunFile, stores: Mapping[str, Store], *, writer: str, rate_limit: RateLimit) -> Store:
    """Return the store for a run's checkpoints and result. Raises StoreRefused when this agent has no such store."""
    base = run.checkpoint.store
    if base == "relay://":
        return stores["relay"]
    if base.startswith(f"{HubStore.scheme}://"):
        return get_hub_store(stores).at(base.removeprefix("hf://"), private=run.hub.private if run.hub else True)
    return open_store(base, Layout(run.checkpoint.layout or Layout.RELAY), writer=writer, rate_limit=rate_limit)


def get_hub_store(stores: Mapping[str, Store]) -> HubStore:
    """Return this host's store on the Hub; raise StoreRefused where it has none."""
    hub = stores.get(HubStore.scheme)
    if not isinstance(hub, HubStore):
        raise StoreRefused("this agent has no way to the Hub")
    return hub


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStore:
    """The store of one attempt. It raises what the store raises, except for StoreUnavailable, which it waits out."""

    lease: str
    store: Store
    retry: StoreRetry
    transfers: Transfers

    @property
    def scheme(self) -> str:
        """The scheme of the uris of its copies."""
        return self.store.scheme

    async def put(
        self,
        place: FolderKey,
        manifest: Manifest,
        where: LocateFile,
        until: Callable[[], Awaitable[object]] | None = None,
    ) -> str | None:
        """Return the uri of a folder once it is stored; None when the store was away and `until` came first."""
        what = f"the upload of step {place.step}" if place.step is not None else f"the upload of the run's {place.kind}"
        doing = f"{what} to {self.scheme}://"
        with self.transfers.track(self.lease, place.step, manifest.size) as transfer:
            return await self.retry.run(doing, partial(self._put, place, manifest, where, transfer), until)

    async def _put(self, place: FolderKey, manifest: Manifest, where: LocateFile, transfer: fleet_pb2.Transfer) -> str:
        return await self.store.put(place, manifest, where, count_into(transfer))
