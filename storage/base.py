"""The interface of a store, the key of a folder in it, and the errors that stores raise.

A store keeps folders. A folder is whole or not there: its files are written first and its manifest last, which makes
it whole. It is written once and never changed. The registry records a folder's `uri`, which says where it lies, and
its manifest's digest, by which its bytes are verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from storage.manifest import Manifest, ManifestFile

Progress = Callable[[int], None]  #: called with the number of bytes done since the last call

#: Returns the path on this host of a file of a manifest.
LocateFile = Callable[[ManifestFile], Path]


def ignore_progress(_: int) -> None:
    """Do nothing: the default for callers that show no progress."""


class DamagedCopy(Exception):
    """The bytes of a copy are gone or do not match the manifest; the caller must use another copy."""


class StoreUnavailable(Exception):
    """A store does not answer or is too busy. Trying again later may help."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        """`after` is the number of seconds that the store asked to wait; 0 when it did not say."""
        super().__init__(text)
        self.after = after


class StoreRefused(Exception):
    """A store refuses the request, and trying again does not help; the message says what must change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKey:
    """Which folder of which attempt this is; stores with readable paths build the path from it.

    It contains the lease's id, so no two attempts ever write to the same path (S4).
    """

    run: str
    framework: str
    attempt: int
    lease: str  #: the lease's own id
    step: int | None  #: of a checkpoint; None for the run's result and for records
    node: int = 0
    nodes: int = 1  #: of the attempt; each has a folder of its own
    records: str = ""  #: `logs` or `config`: the attempt's records; empty for checkpoints and the result

    @property
    def kind(self) -> str:
        """The kind of content: `checkpoints`, `output`, `logs` or `config`."""
        return self.records or ("output" if self.step is None else "checkpoints")


class Store(Protocol):
    """A place where folders are kept. Every method may be cancelled at any moment and called again.

    Each raises StoreUnavailable and StoreRefused, and OSError when this host's disk fails.
    """

    @property
    def scheme(self) -> str:
        """The scheme of the store's uris, such as `relay`, by which the registry names the store."""

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        """Store a folder whose files `locate` finds, and return its uri. Files that are there already are not resent.

        Storing the same folder again is harmless. Raises StoreRefused when the path holds other content.
        """

    async def has(self, uri: str, digest: str) -> bool:
        """Return whether the folder with this manifest digest is whole, judged by the names and sizes of its files."""

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        """Download a folder and verify every byte; resumes an interrupted download. Raises DamagedCopy."""

    async def remove(self, uri: str) -> None:
        """Delete a folder: its manifest first, so that nobody sees a part of it. Does nothing when it is gone."""


class PathStore(Store, Protocol):
    """A store with readable paths, whose uris are known before anything is sent."""

    def uri_of(self, key: FolderKey) -> str:
        """Return the uri at which `put` keeps a folder. Raises StoreRefused when the store has no base."""


@runtime_checkable
class RepairableStore(Protocol):
    """A store whose folders can be repaired in place."""

    async def repair(
        self, uri: str, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> None:
        """Write a folder that is damaged or gone again, from intact files that `locate` finds."""
