"""What the database names in the coordinator's own store."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from storage.manifest import DIGEST_PATTERN


@dataclass(frozen=True, slots=True)
class Named:
    """By digest: manifests, whose files count too, and single blobs."""

    manifests: frozenset[str]
    blobs: frozenset[str]


async def named(conn: asyncpg.Connection) -> Named:
    """All of it, of one moment."""
    rows = await conn.fetch(
        """SELECT true AS manifest, substr(uri, length('relay://') + 1) AS digest
             FROM checkpoint_copies WHERE store = 'relay'
           UNION SELECT true, output ->> 'manifest_digest' FROM runs WHERE output IS NOT NULL
           UNION SELECT false, entry ->> 'digest' FROM runs, jsonb_array_elements(inputs) AS entry
           UNION SELECT false, provenance ->> 'diff_digest' FROM runs WHERE provenance ? 'diff_digest'"""
    )
    sound = [(row["manifest"], row["digest"]) for row in rows if DIGEST_PATTERN.match(row["digest"] or "")]
    return Named(
        manifests=frozenset(digest for manifest, digest in sound if manifest),
        blobs=frozenset(digest for manifest, digest in sound if not manifest),
    )
