"""What an import writes at once: checkpoints that are complete from the beginning, of a lease without places."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid4

import asyncpg

from coordinator.values import ImportedCheckpoint


async def add_checkpoints(
    conn: asyncpg.Connection, run_id: str, lease_id: UUID, attempt: int, found: Sequence[ImportedCheckpoint]
) -> list[UUID]:
    """Complete checkpoints of one part each, with a copy in the coordinator's own store; their ids, in order.

    None is younger than the database's clock says it is now.
    """
    ids = [uuid4() for _ in found]
    await conn.execute(
        """INSERT INTO checkpoints (id, run_id, lease_id, attempt, step, metrics, complete, create_time)
           SELECT id, $1, $2, $3, step, metrics, true, LEAST(to_timestamp(time), clock_timestamp())
           FROM unnest($4::uuid[], $5::bigint[], $6::jsonb[], $7::float8[]) AS c(id, step, metrics, time)""",
        run_id,
        lease_id,
        attempt,
        ids,
        [each.step for each in found],
        [dict(each.metrics) for each in found],
        [each.time for each in found],
    )
    digests = [each.manifest_digest for each in found]
    await conn.execute(
        """INSERT INTO checkpoint_parts (checkpoint_id, node, manifest_digest, size, files)
           SELECT id, 0, digest, size, files
           FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[]) AS p(id, digest, size, files)""",
        ids,
        digests,
        [each.size for each in found],
        [each.files for each in found],
    )
    await conn.execute(
        """INSERT INTO checkpoint_copies (checkpoint_id, node, uri, store)
           SELECT id, 0, 'relay://' || digest, 'relay' FROM unnest($1::uuid[], $2::text[]) AS y(id, digest)""",
        ids,
        digests,
    )
    return ids


async def content_of(conn: asyncpg.Connection, run_id: str, attempt: int) -> dict[int, str]:
    """Manifests of an attempt's checkpoints by step, also of those that have been let go."""
    rows = await conn.fetch(
        """SELECT c.step, p.manifest_digest FROM checkpoints c JOIN checkpoint_parts p ON p.checkpoint_id = c.id
           WHERE c.run_id = $1 AND c.attempt = $2""",
        run_id,
        attempt,
    )
    return {row["step"]: row["manifest_digest"] for row in rows}
