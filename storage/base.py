"""What every store can do.

A store keeps folders, each whole or not there: its files first, and last its manifest, which makes it whole. They are
written once and never changed. Where a folder lies says its `uri`, which the registry keeps; that its bytes are right
says its manifest's digest, which the registry has too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from storage.manifest import Manifest, ManifestFile

Progress = Callable[[int], None]  #: told how many more bytes are done

#: Where a file of a manifest lies on this host.
LocateFile = Callable[[ManifestFile], Path]


def ignore_progress(_: int) -> None:
    """For who does not want to know how far it is."""


class DamagedCopy(Exception):
    """A store's bytes are gone or are not what the manifest says: another copy has to do."""


class StoreUnavailable(Exception):
    """A store does not answer, or is too busy: later it may; `after` so many seconds, where it says so."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.after = after


class StoreRefused(Exception):
    """A store does not do this, and trying again does not help; says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKey:
    """Whose bytes these are: what stores with readable paths make their paths of. With the lease's id in it no two
    attempts ever write to the same place (S4)."""

    run: str
    framework: str
    attempt: int
    lease: str  #: the lease's own id
    step: int | None  #: of a checkpoint; None: the run's result, or what `room` says
    node: int = 0
    nodes: int = 1
    records: str = ""  #: `logs` or `config` of the attempt

    @property
    def kind(self) -> str:
        """What lies there: checkpoints, output, logs or config."""
        return self.records or ("output" if self.step is None else "checkpoints")


class Store(Protocol):
    """Methods wait as long as it takes only where they say so; all may be cancelled at any moment and tried again.

    Each raises StoreAway and StoreRefused, and OSError when this host's disk fails.
    """

    @property
    def scheme(self) -> str:
        """E.g. `relay`; names the store in the registry."""

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        """Keep a folder whose files lie as `where` says, and return its uri. What is there already is not sent again.

        Putting the same again is harmless; other content at the same place is StoreRefused.
        """

    async def has(self, uri: str, digest: str) -> bool:
        """Whether the folder with this manifest digest is there whole, as far as names and sizes tell."""

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        """Bring a folder here, every byte verified; goes on with what an earlier fetch left. Raises Damaged."""

    async def remove(self, uri: str) -> None:
        """Take a folder away: its manifest first, so that it is never seen in part. Harmless when it is gone."""


class PathStore(Store, Protocol):
    """A store with readable paths: where a folder will lie is known before it is sent."""

    def uri_of(self, key: FolderKey) -> str:
        """Return the uri at which `put` keeps a folder. Raises StoreRefused when the store has no base."""


@runtime_checkable
class RepairableStore(Protocol):
    """A store whose folders can be set right where they lie."""

    async def repair(
        self, uri: str, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> None:
        """Bring a folder that is damaged or gone there again, from files that are sound."""
