"""From a uri to its store. What a store needs is loaded when it is first used, and said plainly when it is missing."""

from __future__ import annotations

from relay.stores.address import BUCKETS, AddressError, parse
from relay.stores.base import Store, StoreRefused
from relay.stores.bucket import BucketStore
from relay.stores.folder import FolderStore
from relay.stores.layout import Layout
from relay.stores.pace import Pace


def open_store(
    base: str, layout: Layout = Layout.RELAY, *, writer: str | None = None, pace: Pace | None = None
) -> Store:
    """The store whose folders lie below `base`. StoreRefused when there is no such kind of store, or it is misnamed."""
    try:
        address = parse(base)
    except AddressError as error:
        raise StoreRefused(str(error)) from error
    if address.scheme == "file":
        return FolderStore(base, layout, writer=writer, pace=pace)
    return BucketStore(address.scheme, base, layout, pace=pace)


def readers(*, writer: str | None = None, pace: Pace | None = None) -> dict[str, Store]:
    """By scheme, what fetches and removes any uri of it."""
    buckets = {scheme: BucketStore(scheme, pace=pace) for scheme in BUCKETS}
    return {"file": FolderStore(writer=writer, pace=pace), **buckets}
