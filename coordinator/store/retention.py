"""The retention tables: what the rules need to know of a run's checkpoints, and how deletions are marked.

A checkpoint that is scheduled for deletion is marked as a whole (`remove_time`) and never unmarked. The rows of its
copies in the artifact store are deleted at once; the garbage collector deletes blobs that no row references, much
later. Its other copies are marked, and their rows are deleted when the host that can reach the bytes has reported their
deletion. The rules are in `coordinator.retention`, the transactions that apply them in
`coordinator.commands.retention`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.retention import CheckpointFacts
from coordinator.store.statement import statement
from coordinator.values import Removal
from storage.manifest import DIGEST_PATTERN

LISTED = 200  #: most removals that are sent to a host at once


def host_copy_uri(agent: str) -> str:
    """Return the uri of copies on a host's own disk."""
    return f"host://agents/{agent}"


async def read_kept(conn: asyncpg.Connection, run_id: str) -> tuple[list[CheckpointFacts[UUID]], float]:
    """Return the checkpoints of a run that are not scheduled for deletion, and the time in seconds since the epoch."""
    rows = await read_kept_rows(conn, run_id)
    return [_kept(row) for row in rows], rows[0]["now"].timestamp() if rows else 0.0


def _kept(row: Mapping[str, Any]) -> CheckpointFacts[UUID]:
    return CheckpointFacts(
        id=row["id"],
        attempt=row["attempt"],
        step=row["step"],
        size=row["size"],
        time=row["create_time"].timestamp(),
        metrics=row["metrics"],
        evaluation_due=row["evaluation_due"],
        complete=row["complete"],
        superseded=row["superseded"],
        head=row["head"],
        pinned=row["pinned"],
        resumed=row["resumed"],
        current=row["current"],
        beyond=row["beyond"],
    )


_RESUMED = "EXISTS (SELECT FROM leases u WHERE u.run_id = c.run_id AND u.end_time IS NULL AND u.resumed_from = c.id)"
_ELSEWHERE = "y.store <> 'host' AND y.remove_time IS NULL"


@statement
async def read_kept_rows(conn: asyncpg.Connection, run_id: str) -> Sequence[Mapping[str, Any]]:
    """Return the facts about each checkpoint of a run that is not scheduled for deletion, and the time `now`."""
    rows: Sequence[Mapping[str, Any]] = await conn.fetch(
        f"""SELECT c.id, c.attempt, c.step, c.metrics, c.evaluation_due, c.complete, c.superseded, c.pinned,
                  c.create_time,
                  COALESCE(r.head_id = c.id, false) AS head, l.end_time IS NULL AS current, {_RESUMED} AS resumed,
                  (SELECT COALESCE(sum(p.size), 0)::bigint FROM checkpoint_parts p
                   WHERE p.checkpoint_id = c.id) AS size,
                  NOT EXISTS (
                    SELECT FROM checkpoint_parts p WHERE p.checkpoint_id = c.id AND NOT EXISTS (
                      SELECT FROM checkpoint_copies y
                      WHERE y.checkpoint_id = c.id AND y.node = p.node AND {_ELSEWHERE})) AS beyond,
                  clock_timestamp() AS now
           FROM checkpoints c JOIN runs r ON r.id = c.run_id JOIN leases l ON l.id = c.lease_id
           WHERE c.run_id = $1 AND c.remove_time IS NULL ORDER BY c.attempt, c.step""",
        run_id,
    )
    return rows


async def schedule_deletion(conn: asyncpg.Connection, reasons: Mapping[UUID, str]) -> None:
    """Mark checkpoints of a locked run, each with a reason, and their copies."""
    await mark_checkpoints(conn, reasons)
    await mark_copies(conn, list(reasons))
    await forget_own_copies(conn, list(reasons))


@statement
async def mark_checkpoints(conn: asyncpg.Connection, reasons: Mapping[UUID, str]) -> None:
    """Mark checkpoints, each with a reason."""
    await conn.execute(
        """UPDATE checkpoints c SET remove_time = clock_timestamp(), remove_reason = g.reason
           FROM unnest($1::uuid[], $2::text[]) AS g(id, reason) WHERE c.id = g.id""",
        list(reasons),
        list(reasons.values()),
    )


@statement
async def mark_copies(conn: asyncpg.Connection, checkpoint_ids: Sequence[UUID]) -> None:
    """Mark the copies of checkpoints, except those in the artifact store."""
    await conn.execute(
        """UPDATE checkpoint_copies SET remove_time = clock_timestamp()
           WHERE checkpoint_id = ANY($1) AND remove_time IS NULL AND store <> 'relay'""",
        list(checkpoint_ids),
    )


@statement
async def forget_own_copies(conn: asyncpg.Connection, checkpoint_ids: Sequence[UUID]) -> None:
    """Delete the rows of copies in the artifact store."""
    await conn.execute(
        "DELETE FROM checkpoint_copies WHERE checkpoint_id = ANY($1) AND store = 'relay'", list(checkpoint_ids)
    )


@statement
async def set_pin(conn: asyncpg.Connection, checkpoint_id: UUID, pinned: bool, reason: str) -> None:
    """Record whether a user has pinned a checkpoint, and why."""
    await conn.execute(
        "UPDATE checkpoints SET pinned = $2, pin_reason = $3 WHERE id = $1", checkpoint_id, pinned, reason
    )


_SPARE = f"""y.uri = $1 AND y.store = 'host' AND y.remove_time IS NULL AND c.remove_time IS NULL
             AND r.head_id IS DISTINCT FROM c.id AND NOT {_RESUMED}
             AND EXISTS (SELECT FROM checkpoint_copies o WHERE o.checkpoint_id = y.checkpoint_id AND o.node = y.node
                           AND o.store <> 'host' AND o.remove_time IS NULL)"""


@statement
async def find_runs_with_spare_copies(conn: asyncpg.Connection, uri: str) -> list[str]:
    """Return runs with spare copies on a host: another copy exists beyond any host, and no attempt resumes from this
    one.
    """
    rows = await conn.fetch(
        f"""SELECT DISTINCT c.run_id FROM checkpoint_copies y JOIN checkpoints c ON c.id = y.checkpoint_id
           JOIN runs r ON r.id = c.run_id WHERE {_SPARE} ORDER BY c.run_id""",
        uri,
    )
    return [row["run_id"] for row in rows]


@statement
async def mark_spare_copies(conn: asyncpg.Connection, run_id: str, uri: str) -> list[int]:
    """Mark the spare copies of one locked run; return their steps."""
    rows = await conn.fetch(
        f"""UPDATE checkpoint_copies y SET remove_time = clock_timestamp()
           FROM checkpoints c JOIN runs r ON r.id = c.run_id
           WHERE y.checkpoint_id = c.id AND c.run_id = $2 AND {_SPARE} RETURNING c.step""",
        uri,
        run_id,
    )
    return sorted(row["step"] for row in rows)


@statement
async def list_removals(conn: asyncpg.Connection, agent: str, age: float) -> list[Removal]:
    """Return copies that a host must delete: marked at least `age` seconds ago, and within its reach."""
    rows = await conn.fetch(
        """SELECT y.checkpoint_id, c.run_id, c.lease_id, c.attempt, c.step, y.node, y.store, y.uri
           FROM checkpoint_copies y JOIN checkpoints c ON c.id = y.checkpoint_id
           WHERE y.remove_time <= clock_timestamp() - make_interval(secs => $4)
             AND (y.uri = $2 OR (y.store <> 'host' AND $1 = (
               SELECT p.agent FROM leases l JOIN places p ON p.lease_id = l.id
               WHERE l.run_id = c.run_id ORDER BY l.attempt DESC, l.grant_time DESC, p.node LIMIT 1)))
           ORDER BY y.store <> 'host', y.remove_time, y.checkpoint_id, y.node, y.uri LIMIT $3""",
        agent,
        host_copy_uri(agent),
        LISTED,
        age,
    )
    return [Removal(**row) for row in rows]


@statement
async def forget_copies(conn: asyncpg.Connection, deleted: Sequence[tuple[UUID, int, str]]) -> int:
    """Delete the rows of marked copies by checkpoint, node and uri; return how many there were."""
    status: str = await conn.execute(
        """DELETE FROM checkpoint_copies y USING unnest($1::uuid[], $2::int[], $3::text[]) AS g(id, node, uri)
           WHERE y.checkpoint_id = g.id AND y.node = g.node AND y.uri = g.uri AND y.remove_time IS NOT NULL""",
        [checkpoint_id for checkpoint_id, _, _ in deleted],
        [node for _, node, _ in deleted],
        [uri for _, _, uri in deleted],
    )
    return int(status.rsplit(" ", 1)[-1])


@statement
async def find_orphans(
    conn: asyncpg.Connection, sealed: Sequence[tuple[UUID, int]], age: float
) -> list[tuple[UUID, int]]:
    """Return those checkpoints, by lease and step, whose lease has ended and that are not registered.

    Checkpoints that were scheduled for deletion more than `age` seconds ago count as not registered: a copy of a disk
    may still have them.
    """
    rows = await conn.fetch(
        """SELECT g.lease_id, g.step FROM unnest($1::uuid[], $2::bigint[]) AS g(lease_id, step)
           JOIN leases l ON l.id = g.lease_id AND l.end_time IS NOT NULL
           WHERE NOT EXISTS (
             SELECT FROM checkpoints c WHERE c.lease_id = g.lease_id AND c.step = g.step
               AND COALESCE(c.remove_time > clock_timestamp() - make_interval(secs => $3), true))
           ORDER BY g.lease_id, g.step""",
        [lease_id for lease_id, _ in sealed],
        [step for _, step in sealed],
        age,
    )
    return [(row["lease_id"], row["step"]) for row in rows]


@statement
async def find_runs_with_max_age(conn: asyncpg.Connection) -> list[str]:
    """Return runs whose checkpoints may have to be deleted because time passes."""
    rows = await conn.fetch(
        """SELECT r.id FROM runs r WHERE r.spec #> '{checkpoint,keep,max_age}' IS NOT NULL
             AND EXISTS (SELECT FROM checkpoints c WHERE c.run_id = r.id AND c.remove_time IS NULL) ORDER BY r.id"""
    )
    return [row["id"] for row in rows]


@dataclass(frozen=True, slots=True)
class ReferencedBlobs:
    """Digests of manifests, whose files are referenced too, and of single blobs."""

    manifests: frozenset[str]
    blobs: frozenset[str]


async def read_referenced_blobs(conn: asyncpg.Connection) -> ReferencedBlobs:
    """Return every blob in the artifact store that the database references, at one moment."""
    rows = await conn.fetch(
        """SELECT true AS manifest, substr(uri, length('relay://') + 1) AS digest
             FROM checkpoint_copies WHERE store = 'relay'
           UNION SELECT true, output ->> 'manifest_digest' FROM runs WHERE output IS NOT NULL
           UNION SELECT false, entry ->> 'digest' FROM runs, jsonb_array_elements(inputs) AS entry
           UNION SELECT false, provenance ->> 'diff_digest' FROM runs WHERE provenance ? 'diff_digest'"""
    )
    sound = [(row["manifest"], row["digest"]) for row in rows if DIGEST_PATTERN.match(row["digest"] or "")]
    return ReferencedBlobs(
        manifests=frozenset(digest for manifest, digest in sound if manifest),
        blobs=frozenset(digest for manifest, digest in sound if not manifest),
    )
