"""Opening stores by uri. obstore, which buckets need, is imported when a bucket is first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from storage.address import BUCKET_SCHEMES, SCHEMES, AddressError, parse_address
from storage.base import PathStore, Store, StoreRefused
from storage.folder import FolderStore
from storage.layout import Layout
from storage.throttling import RateLimit

if TYPE_CHECKING:
    from storage.bucket import BucketStore


def open_store(
    base: str, layout: Layout = Layout.RELAY, *, writer: str | None = None, rate_limit: RateLimit | None = None
) -> PathStore:
    """Return the store whose folders lie below `base`. Raises StoreRefused for an unknown scheme or a malformed uri."""
    try:
        address = parse_address(base)
    except AddressError as error:
        raise StoreRefused(str(error)) from error
    if address.scheme == "file":
        return FolderStore(base, layout, writer=writer, rate_limit=rate_limit)
    return _buckets(address.scheme)(address.scheme, base, layout, rate_limit=rate_limit)


class StoresByScheme(Mapping[str, Store]):
    """Stores by scheme, each of which fetches, repairs and removes any uri of its scheme.

    A scheme that cannot be used on this host is missing.
    """

    def __init__(
        self,
        others: Mapping[str, Store] | None = None,
        *,
        writer: str | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        """`others` are stores that cannot be opened by their scheme alone."""
        self._writer = writer
        self._rate_limit = rate_limit
        self._opened: dict[str, Store] = dict(others or {})

    def __getitem__(self, scheme: str) -> Store:
        if scheme not in self._opened:
            self._opened[scheme] = self._open(scheme)
        return self._opened[scheme]

    def _open(self, scheme: str) -> Store:
        if scheme == "file":
            return FolderStore(writer=self._writer, rate_limit=self._rate_limit)
        if scheme not in BUCKET_SCHEMES:
            raise KeyError(scheme)
        try:
            return _buckets(scheme)(scheme, rate_limit=self._rate_limit)
        except StoreRefused as refused:
            raise KeyError(scheme) from refused

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._opened, *SCHEMES)))

    def __len__(self) -> int:
        return len(dict.fromkeys((*self._opened, *SCHEMES)))


def _buckets(scheme: str) -> type[BucketStore]:
    try:
        from storage.bucket import BucketStore
    except ImportError as error:
        hint = "pip install 'relay-training[stores]'"
        raise StoreRefused(f"{scheme}:// needs obstore, which is not installed: {hint}") from error
    return BucketStore
