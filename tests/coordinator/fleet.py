"""What the tests of leases share: a steady coordinator, its database, and a hand on its clock."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import struct_pb2
from grpc import aio

from coordinator.background import reaper
from coordinator.config import Config
from coordinator.database.connections import Database, connect_database
from relay.errors import RelayError, from_rpc
from relay.timing import DEFAULT
from relay.v1 import agents_pb2, runs_pb2
from tests.conftest import PATIENT, RunningCoordinator, serving

COMMAND = {"version": "relay/v1", "method": "command", "command": ["true"]}


@dataclass(frozen=True)
class World:
    """A coordinator whose leases last long: what must lapse is made to."""

    config: Config
    replica: RunningCoordinator
    db: Database

    async def submit(self, name: str = "r", **more: Any) -> runs_pb2.CreateRunResponse:
        """Creates a run."""
        request = {key: more.pop(key) for key in ("request_id", "resume", "validate_only", "inputs") if key in more}
        spec = struct_pb2.Struct()
        spec.update({**COMMAND, "name": name, **more})
        return await self.replica.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec, **request))

    async def run(self, name: str = "r") -> runs_pb2.Run:
        """The run as it is now."""
        return await self.replica.runs.GetRun(runs_pb2.GetRunRequest(name=f"runs/{name}"))

    async def expire(self, lease: str, *, of: str = "") -> None:
        """Lets a lease's places run out, and the reaper look."""
        async with self.db.connection() as conn:
            await conn.execute(
                """UPDATE places SET expire_time = clock_timestamp() - interval '1 second'
                   WHERE lease_id = $1::text::uuid AND ($2 = '' OR agent = $2)""",
                lease.rpartition("/")[2],
                of,
            )
        await reaper.reap_once(self.db, self.config.timing, None)

    async def store(self, lease: str, offset: int, source: str = "events") -> None:
        """Moves a cursor, as if so many bytes had been stored."""
        async with self.db.connection() as conn:
            await conn.execute(
                """INSERT INTO cursors (lease_id, node, source, offset_bytes) VALUES ($1::text::uuid, 0, $2, $3)
                   ON CONFLICT (lease_id, node, source) DO UPDATE SET offset_bytes = EXCLUDED.offset_bytes""",
                lease.rpartition("/")[2],
                source,
                offset,
            )

    async def attempts(self, name: str = "r") -> list[runs_pb2.Attempt]:
        """All attempts."""
        request = runs_pb2.ListAttemptsRequest(name=f"runs/{name}")
        return list((await self.replica.runs.ListAttempts(request)).attempts)

    async def history(self, name: str = "r") -> list[tuple[str, str]]:
        """Kind and text of each entry."""
        async with self.db.connection() as conn:
            rows = await conn.fetch("SELECT kind, message FROM run_events WHERE run_id = $1 ORDER BY sequence", name)
        return [(row["kind"], row["message"]) for row in rows]

    @asynccontextmanager
    async def second(self) -> AsyncIterator[RunningCoordinator]:
        """Another replica on the same database."""
        data_dir = self.config.data_dir.with_name("coordinator-2")
        async with serving(replace(self.config, data_dir=data_dir)) as running:
            yield running


@asynccontextmanager
async def world(config: Config) -> AsyncIterator[World]:
    """A coordinator with the timing of production."""
    config = replace(config, timing=DEFAULT)
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(serving(config))
        db = await stack.enter_async_context(connect_database(replica.database_url, timeouts=PATIENT))
        yield World(config, replica, db)


def reason(error: aio.AioRpcError) -> str:
    """The domain reason an RPC failed with."""
    found = from_rpc(error)
    assert isinstance(found, RelayError), error
    return found.reason


RUN, STOP = agents_pb2.DesiredLease.RUN, agents_pb2.DesiredLease.STOP
