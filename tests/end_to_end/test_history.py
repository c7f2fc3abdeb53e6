"""The history checker over a real deployment: sound as recorded, and not when a row of it is altered."""

from __future__ import annotations

import asyncpg
import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.rotating(3, of="end to end")]

#: Property, what is done to the database, and what undoes it.
ALTERED = [
    ("S1", "UPDATE leases SET attempt = attempt + 1", "UPDATE leases SET attempt = attempt - 1"),
    ("S2", "UPDATE log_chunks SET time = time + interval '1 h'", "UPDATE log_chunks SET time = time - interval '1 h'"),
    ("S5", "UPDATE cursors SET offset_bytes = offset_bytes - 1", "UPDATE cursors SET offset_bytes = offset_bytes + 1"),
    (
        "S6",
        "UPDATE leases SET kept_until_step = 1 WHERE kept_until_step IS NULL",
        "UPDATE leases SET kept_until_step = NULL WHERE kept_until_step = 1",
    ),
    ("S7", "UPDATE metric_chunks SET points[1] = -points[1]", "UPDATE metric_chunks SET points[1] = -points[1]"),
    ("S8", "UPDATE run_events SET sequence = -sequence", "UPDATE run_events SET sequence = -sequence"),
    ("S9", "UPDATE requests SET run_id = 's'", "UPDATE requests SET run_id = 'r'"),
]


async def test_a_real_history_is_sound_until_a_row_is_altered(fleet: Fleet) -> None:
    """S1 to S9; the fixture asks once more at the end."""
    await fleet.host("a")
    run = await fleet.submit_gated(steps=4, save_every=2)
    await fleet.conductor.allow(4)
    assert (await run.ended()).state == pb.Run.SUCCEEDED
    await fleet.is_sound()
    connection = await asyncpg.connect(fleet.deployment.database_url)
    try:
        await connection.execute("SET session_replication_role = replica")  # foreign keys would refuse some of it
        for name, statement, undo in ALTERED:
            await connection.execute(statement)
            found = await fleet.broken()
            assert name in {violation.property for violation in found}, (statement, list(map(str, found)))
            await connection.execute(undo)
    finally:
        await connection.close()
