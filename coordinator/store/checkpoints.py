"""The registry of checkpoints. Its rows alone decide which checkpoint counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID, uuid4

import asyncpg

from coordinator.store.statement import statement
from coordinator.values import CheckpointView, Copy, ImportedCheckpoint, NewCheckpoint, Part
from relay.errors import CheckpointMissing

OFFERED = 100  #: most checkpoints that are sent to a host at once: messages are limited, and a long run has thousands

_SELECT = """SELECT c.id, c.run_id, c.lease_id, c.attempt, c.step, c.metrics, c.evaluation_due, c.complete,
                    c.superseded, c.create_time,
                    c.pinned, c.pin_reason, c.remove_time, c.remove_reason, r.head_id = c.id AS head,
                    (SELECT jsonb_agg(jsonb_build_object(
                       'node', p.node, 'manifest_digest', p.manifest_digest, 'size', p.size, 'files', p.files,
                       'copies', (SELECT COALESCE(jsonb_agg(jsonb_build_object(
                                    'store', y.store, 'uri', y.uri,
                                    'create_time', extract(epoch FROM y.create_time),
                                    'remove_time', extract(epoch FROM y.remove_time)) ORDER BY y.create_time, y.uri),
                                  '[]') FROM checkpoint_copies y WHERE y.checkpoint_id = c.id AND y.node = p.node)
                     ) ORDER BY p.node) FROM checkpoint_parts p WHERE p.checkpoint_id = c.id) AS parts
             FROM checkpoints c JOIN runs r ON r.id = c.run_id"""


def _view(row: asyncpg.Record) -> CheckpointView:
    return CheckpointView(
        id=row["id"],
        run_id=row["run_id"],
        lease_id=row["lease_id"],
        attempt=row["attempt"],
        step=row["step"],
        metrics=row["metrics"],
        evaluation_due=row["evaluation_due"],
        complete=row["complete"],
        superseded=row["superseded"],
        head=bool(row["head"]),
        create_time=row["create_time"].timestamp(),
        pinned=row["pinned"],
        pin_reason=row["pin_reason"],
        remove_time=row["remove_time"] and row["remove_time"].timestamp(),
        remove_reason=row["remove_reason"],
        parts=tuple(
            Part(**{**part, "copies": tuple(Copy(**copy) for copy in part["copies"])}) for part in row["parts"] or ()
        ),
    )


@statement
async def get(conn: asyncpg.Connection, checkpoint_id: UUID) -> CheckpointView | None:
    """Return one checkpoint, or None."""
    row = await conn.fetchrow(f"{_SELECT} WHERE c.id = $1", checkpoint_id)
    return _view(row) if row else None


async def read_many(conn: asyncpg.Connection, ids: Sequence[UUID]) -> dict[UUID, CheckpointView]:
    """Return several checkpoints by id."""
    rows = await conn.fetch(f"{_SELECT} WHERE c.id = ANY($1)", list(ids))
    return {row["id"]: _view(row) for row in rows}


async def list_of_run(
    conn: asyncpg.Connection, run_id: str, *, superseded: bool, removed: bool
) -> list[CheckpointView]:
    """Return the checkpoints of a run in the order (attempt, step)."""
    rows = await conn.fetch(
        f"""{_SELECT} WHERE c.run_id = $1 AND ($2 OR NOT c.superseded) AND ($3 OR c.remove_time IS NULL)
            ORDER BY c.attempt, c.step""",
        run_id,
        superseded,
        removed,
    )
    return [_view(row) for row in rows]


@statement
async def list_of_lease(conn: asyncpg.Connection, lease_id: UUID) -> list[CheckpointView]:
    """Return the newest checkpoints that a lease has registered, by step."""
    rows = await conn.fetch(f"{_SELECT} WHERE c.lease_id = $1 ORDER BY c.step DESC LIMIT $2", lease_id, OFFERED)
    return [_view(row) for row in reversed(rows)]


_ON_THE_CURVE = (
    "SELECT k.id FROM checkpoints k WHERE k.run_id = $1 AND k.complete AND NOT k.superseded AND k.remove_time IS NULL"
)
_NEWEST_FIRST = "ORDER BY k.attempt DESC, k.step DESC LIMIT $2"
_NEWEST = f"{_ON_THE_CURVE} {_NEWEST_FIRST}"
_BEYOND_ITS_HOST = """EXISTS (SELECT FROM checkpoint_copies y
                              WHERE y.checkpoint_id = k.id AND y.store <> 'host' AND y.remove_time IS NULL)"""
_NEWEST_KEPT = f"{_ON_THE_CURVE} AND {_BEYOND_ITS_HOST} {_NEWEST_FIRST}"


@statement
async def list_resumable(conn: asyncpg.Connection, run_id: str) -> list[CheckpointView]:
    """Return the checkpoints that a new attempt may resume from, newest first: complete, not superseded (S6), and kept.

    These are the newest ones, and the newest ones that have a copy beyond their host's disk, however old those are.
    """
    rows = await conn.fetch(
        f"""{_SELECT} WHERE c.id IN (({_NEWEST}) UNION ({_NEWEST_KEPT})) ORDER BY c.attempt DESC, c.step DESC""",
        run_id,
        OFFERED,
    )
    return [_view(row).without_removed_copies() for row in rows]


async def check_registered(conn: asyncpg.Connection, lease_id: UUID, step: int | None) -> None:
    """Raise CheckpointMissing unless the lease has registered this step or a later one."""
    if step is not None and ((last := await find_last_step(conn, lease_id)) is None or last < step):
        raise CheckpointMissing(f"the checkpoint of step {step} is not registered")


@statement
async def find_last_step(conn: asyncpg.Connection, lease_id: UUID) -> int | None:
    """Return the greatest step that the lease has registered, or None."""
    step: int | None = await conn.fetchval("SELECT max(step) FROM checkpoints WHERE lease_id = $1", lease_id)
    return step


@statement
async def find(conn: asyncpg.Connection, lease_id: UUID, step: int) -> UUID | None:
    """Return the id of the lease's checkpoint of a step, or None."""
    found: UUID | None = await conn.fetchval(
        "SELECT id FROM checkpoints WHERE lease_id = $1 AND step = $2", lease_id, step
    )
    return found


@statement
async def add(conn: asyncpg.Connection, run_id: str, lease_id: UUID, attempt: int, new: NewCheckpoint) -> UUID:
    """Insert a checkpoint without parts and return its id."""
    checkpoint_id: UUID = await conn.fetchval(
        """INSERT INTO checkpoints (run_id, lease_id, attempt, step, evaluation_due) VALUES ($1, $2, $3, $4, $5)
           RETURNING id""",
        run_id,
        lease_id,
        attempt,
        new.step,
        new.evaluation_due,
    )
    return checkpoint_id


async def add_part(conn: asyncpg.Connection, checkpoint_id: UUID, new: NewCheckpoint) -> str:
    """Register one node's part unless it is registered; return the manifest digest that is registered."""
    await insert_part(conn, checkpoint_id, new)
    await merge_metrics(conn, checkpoint_id, new.metrics)
    return await read_digest(conn, checkpoint_id, new.node)


@statement
async def insert_part(conn: asyncpg.Connection, checkpoint_id: UUID, new: NewCheckpoint) -> None:
    """Insert one node's part unless it exists."""
    await conn.execute(
        """INSERT INTO checkpoint_parts (checkpoint_id, node, manifest_digest, size, files)
           VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING""",
        checkpoint_id,
        new.node,
        new.manifest_digest,
        new.size,
        new.files,
    )


@statement
async def merge_metrics(conn: asyncpg.Connection, checkpoint_id: UUID, metrics: Mapping[str, float]) -> None:
    """Add the metrics that a node reports for a checkpoint that is not complete."""
    await conn.execute(
        "UPDATE checkpoints SET metrics = metrics || $2 WHERE id = $1 AND NOT complete", checkpoint_id, dict(metrics)
    )


@statement
async def add_evaluation(conn: asyncpg.Connection, lease_id: UUID, step: int, values: Mapping[str, float]) -> bool:
    """Add what a lease reports of the weights of a step to the checkpoint of that step, which the lease has made or
    resumed from. Values that are there stay. Return True when there is such a checkpoint.
    """
    rows = await conn.fetch(
        """UPDATE checkpoints SET metrics = $3 || metrics, evaluation_due = false
           WHERE step = $2 AND (lease_id = $1 OR id = (SELECT resumed_from FROM leases WHERE id = $1)) RETURNING id""",
        lease_id,
        step,
        dict(values),
    )
    return bool(rows)


@statement
async def read_evaluation(conn: asyncpg.Connection, run_id: str, lease_id: UUID, step: int) -> dict[str, float]:
    """Return the newest value, which is none that is NaN, of each `eval_` metric that a lease has reported for a
    step. For the step that it resumed from, what is on the run's curve counts too: the weights are the same.
    """
    rows = await conn.fetch(
        """SELECT c.metric, p.point
           FROM metric_chunks c JOIN leases l ON l.id = c.lease_id, unnest(c.steps, c.points) AS p(step, point)
           WHERE c.run_id = $1 AND p.step = $3 AND p.point <> 'NaN'
             AND (c.lease_id = $2 OR $3 <= COALESCE(l.kept_until_step, $3)
                                     AND $3 = (SELECT o.resumed_step FROM leases o WHERE o.id = $2))
             AND c.metric IN (
             SELECT name FROM runs r, jsonb_object_keys(r.metrics) AS name WHERE r.id = $1 AND name LIKE 'eval\\_%')
           ORDER BY c.id""",
        run_id,
        lease_id,
        step,
    )
    return {row["metric"]: row["point"] for row in rows}


@statement
async def read_digest(conn: asyncpg.Connection, checkpoint_id: UUID, node: int) -> str:
    """Return the manifest digest that is registered for a node's part."""
    digest: str = await conn.fetchval(
        "SELECT manifest_digest FROM checkpoint_parts WHERE checkpoint_id = $1 AND node = $2", checkpoint_id, node
    )
    return digest


async def add_copies(conn: asyncpg.Connection, checkpoint_id: UUID, node: int, copies: Iterable[Copy]) -> list[Copy]:
    """Add copies of a part; return those that were new and are kept."""
    return [copy for copy in copies if await add_copy(conn, checkpoint_id, node, copy)]


@statement
async def add_copy(conn: asyncpg.Connection, checkpoint_id: UUID, node: int, copy: Copy) -> bool:
    """Add a copy of a part; return True when it was new and is kept.

    A late copy of a checkpoint that is scheduled for deletion is scheduled for deletion too.
    """
    row = await conn.fetchrow(
        """INSERT INTO checkpoint_copies (checkpoint_id, node, uri, store, remove_time)
           SELECT c.id, $2, $3, $4, CASE WHEN c.remove_time IS NOT NULL THEN clock_timestamp() END
           FROM checkpoints c WHERE c.id = $1 AND (c.remove_time IS NULL OR $4 <> 'relay')
           ON CONFLICT DO NOTHING RETURNING remove_time""",
        checkpoint_id,
        node,
        copy.uri,
        copy.store,
    )
    return row is not None and row["remove_time"] is None


@statement
async def mark_complete(conn: asyncpg.Connection, checkpoint_id: UUID) -> bool:
    """Mark a checkpoint complete once every place of its lease has registered its part; True if it just became so."""
    row = await conn.fetchrow(
        """UPDATE checkpoints c SET complete = true
           WHERE c.id = $1 AND NOT c.complete
             AND (SELECT count(*) FROM checkpoint_parts WHERE checkpoint_id = c.id)
               = (SELECT count(*) FROM places WHERE lease_id = c.lease_id)
           RETURNING c.id""",
        checkpoint_id,
    )
    return row is not None


@statement
async def move_head(conn: asyncpg.Connection, run_id: str, checkpoint_id: UUID) -> bool:
    """Make a complete checkpoint the head, unless its own lease already has a later head; return True when it moved
    (S5).
    """
    row = await conn.fetchrow(
        """UPDATE runs r SET head_id = c.id, update_time = clock_timestamp() FROM checkpoints c
           WHERE r.id = $1 AND c.id = $2 AND c.complete AND NOT EXISTS (
             SELECT FROM checkpoints h WHERE h.id = r.head_id AND h.lease_id = c.lease_id AND h.step >= c.step)
           RETURNING r.id""",
        run_id,
        checkpoint_id,
    )
    return row is not None


async def resume_at(conn: asyncpg.Connection, run_id: str, lease_id: UUID, checkpoint: CheckpointView | None) -> int:
    """Set the head to the checkpoint that an attempt resumes from, and mark what came after it as superseded (S6).

    Steps only grow along the curve, so "after" means a greater step, or the same step of a later attempt. Returns the
    number of superseded checkpoints. Without a checkpoint everything before is superseded, points of step 0 included.
    """
    step = checkpoint.step if checkpoint else -1
    await set_head(conn, run_id, checkpoint.id if checkpoint else None, max(step, 0))
    await cut_curves(conn, run_id, lease_id, step)
    return await supersede(conn, run_id, lease_id, step, checkpoint.attempt if checkpoint else 0)


@statement
async def set_head(conn: asyncpg.Connection, run_id: str, checkpoint_id: UUID | None, step: int) -> None:
    """Set the head unconditionally, and the run's step to that of the head."""
    await conn.execute(
        "UPDATE runs SET head_id = $2, step = $3, update_time = clock_timestamp() WHERE id = $1",
        run_id,
        checkpoint_id,
        step,
    )


@statement
async def cut_curves(conn: asyncpg.Connection, run_id: str, lease_id: UUID, step: int) -> None:
    """Mark the points of other leases after a step as superseded."""
    await conn.execute(
        """UPDATE leases SET kept_until_step = LEAST(COALESCE(kept_until_step, $3), $3)
           WHERE run_id = $1 AND id <> $2""",
        run_id,
        lease_id,
        step,
    )


@statement
async def supersede(conn: asyncpg.Connection, run_id: str, lease_id: UUID, step: int, attempt: int) -> int:
    """Mark the checkpoints of other leases after (step, attempt) as superseded; return how many."""
    status: str = await conn.execute(
        """UPDATE checkpoints SET superseded = true
           WHERE run_id = $1 AND lease_id <> $2 AND NOT superseded AND (step > $3 OR (step = $3 AND attempt > $4))""",
        run_id,
        lease_id,
        step,
        attempt,
    )
    return int(status.rsplit(" ", 1)[-1])


async def add_imported(
    conn: asyncpg.Connection, run_id: str, lease_id: UUID, attempt: int, found: Sequence[ImportedCheckpoint]
) -> list[UUID]:
    """Insert complete checkpoints of one part each, with a copy in the artifact store; return their ids, in order.

    No creation time is later than the database's current time.
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


async def read_digests_by_step(conn: asyncpg.Connection, run_id: str, attempt: int) -> dict[int, str]:
    """Return the manifest digests of an attempt's checkpoints by step, including those scheduled for deletion."""
    rows = await conn.fetch(
        """SELECT c.step, p.manifest_digest FROM checkpoints c JOIN checkpoint_parts p ON p.checkpoint_id = c.id
           WHERE c.run_id = $1 AND c.attempt = $2""",
        run_id,
        attempt,
    )
    return {row["step"]: row["manifest_digest"] for row in rows}
