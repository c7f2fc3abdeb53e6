"""Deletes blobs that nothing references, while uploads and downloads continue.

The database names inputs, results, and manifests of checkpoints; manifests name files. Whoever writes a name into the
database has asked the store for all that it means shortly before, and what was asked for is kept for a grace period. So
a name that is written during a sweep finds its blobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.artifacts.base import Artifacts, SweepResult
from relay.errors import BlobTooLarge, BlobUnknown, DigestMismatch, InputMissing
from relay.logs import get_logger
from storage.manifest import MAX_BYTES, Manifest, ManifestError

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSchedule:
    """How often to collect, and how long to keep what was asked for, in seconds. `grace` must exceed the longest
    upload.
    """

    every: float = 3600.0
    grace: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if self.every <= 0 or self.grace < 0:
            raise ValueError("collecting needs a positive interval, and a grace that is not negative")


def read_file_digests(artifacts: Artifacts, manifest_digest: str) -> frozenset[str]:
    """Return the digests of the files that a manifest names; BlobUnknown, ManifestError and the like. Blocking."""
    manifest = Manifest.from_bytes(artifacts.read(manifest_digest, MAX_BYTES))
    return frozenset(file.digest for file in manifest.files)


def find_missing(artifacts: Artifacts, manifest_digest: str) -> list[str]:
    """Return the digests of what the store lacks of a folder; it keeps the rest for the sweep's grace. Blocking."""
    if not artifacts.stat(manifest_digest).complete:
        return [manifest_digest]
    try:
        wanted = read_file_digests(artifacts, manifest_digest)
    except (BlobUnknown, BlobTooLarge, DigestMismatch, ManifestError):
        return [manifest_digest]
    return [stat.digest for stat in artifacts.stats(sorted(wanted)) if not stat.complete]


def require_folder(artifacts: Artifacts, manifest_digest: str) -> None:
    """Raise InputMissing unless the store has a whole folder, which it then keeps for the sweep's grace. Blocking."""
    if lacking := find_missing(artifacts, manifest_digest):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputMissing(f"the artifact store does not have {lacking[0]}{more}")


@dataclass(slots=True)
class Collector:
    """Sweeps one store. It caches what manifests name, which never changes."""

    artifacts: Artifacts
    _files: dict[str, frozenset[str]] = field(default_factory=dict)

    def collect(self, manifests: Iterable[str], blobs: Iterable[str], before: float) -> SweepResult:
        """Delete everything that is neither among `blobs`, nor a manifest, nor named by a manifest. Blocking.

        Raises OSError before anything is deleted, when a manifest cannot be read for a reason that is not its own.
        """
        known = {digest: self._named_by(digest) for digest in manifests}
        self._files = {digest: files for digest, files in known.items() if files is not None}
        named = {*known, *blobs}.union(*self._files.values())
        return self.artifacts.sweep(named, before)

    def _named_by(self, digest: str) -> frozenset[str] | None:
        if (found := self._files.get(digest)) is not None:
            return found
        try:
            return read_file_digests(self.artifacts, digest)
        except (BlobUnknown, BlobTooLarge, DigestMismatch, ManifestError) as wrong:
            _log.warning("manifest names nothing", manifest=digest, reason=wrong)
            return None
