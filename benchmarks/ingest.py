"""Points per second through gRPC, each acknowledged after its commit, compared with what Postgres itself can store.

Client, coordinator and an embedded Postgres (durable) share this machine, and the client's share is part of the figure.
Four agents' streams send byte ranges of event lines, ten values on a line, a few ranges at a time. The baseline copies
the same points (`COPY`) by one connection into a plain table of the same database, one row for each point, in
transactions of one range: no parsing, no fence, no cursor, no network.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import uuid
from pathlib import Path

import asyncpg
import uvloop
from grpc import aio

from benchmarks.report import Table
from coordinator.config import Config
from coordinator.server import ServerInfo, serve
from relay.v1 import agents_pb2
from relay.v1.agents_pb2_grpc import AgentsStub

LINES = 200  #: lines in one byte range
VALUES = 10  #: in one line
AHEAD = 8  #: byte ranges in flight
STREAMS = 4


def measure(quick: bool) -> Table:
    """Points per second."""
    relay, copied = uvloop.run(_rates(1.0 if quick else 10.0))
    rows = [
        ("Relay, to the acknowledgement", f"{relay:,.0f}", f"{relay / copied:.2f}"),
        ("COPY of one row a point", f"{copied:,.0f}", "1.00"),
    ]
    return Table(f"Metrics, {STREAMS} streams, {VALUES} values a line", ("", "points/s", "/ COPY"), rows)


async def _rates(seconds: float) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        stop, running = asyncio.Event(), asyncio.get_running_loop().create_future()
        config = Config(listen="127.0.0.1:0", data_dir=Path(folder))
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(config, stop, running.set_result))
            told: ServerInfo = await running
            copied = await _copied(told.database_url, seconds / 2)
            began = time.monotonic()
            load = (_stream(told.address, told.database_url, began + seconds) for _ in range(STREAMS))
            points = sum(await asyncio.gather(*load))
            relay = points / (time.monotonic() - began)
            stop.set()
    return relay, copied


async def _copied(url: str, seconds: float) -> float:
    """Points per second into a table of rows."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE bench (run text, name text, step bigint, value float8, time float8)")
        rows = [("run", f"metric_{n}", line, n + 0.5, 1.7e9) for line in range(LINES) for n in range(VALUES)]
        began, points = time.monotonic(), 0
        while time.monotonic() < began + seconds:
            await connection.copy_records_to_table("bench", records=rows)
            points += len(rows)
        rate = points / (time.monotonic() - began)
        await connection.execute("DROP TABLE bench")
    finally:
        await connection.close()
    return rate


async def _stream(address: str, url: str, deadline: float) -> int:
    """Points sent before the deadline, all acknowledged."""
    run = uuid.uuid4().hex
    name, offset, sent, acked = f"runs/{run}/leases/{await _lease(url, run)}", 0, 0, 0
    async with aio.insecure_channel(address) as channel:
        call = AgentsStub(channel).AppendEvents()
        while time.monotonic() < deadline or acked < sent:
            if time.monotonic() < deadline and sent - acked < AHEAD:
                data = _make_lines(sent * LINES)
                request = agents_pb2.AppendEventsRequest(lease=name, source="events", offset=offset, data=data)
                await call.write(request)
                offset, sent = offset + len(data), sent + 1
            else:
                await call.read()
                acked += 1
        await call.done_writing()
    return acked * LINES * VALUES


async def _lease(url: str, run: str) -> uuid.UUID:
    """A lease that nobody but us believes in."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "INSERT INTO runs (id, state, wanted, spec, request_digest) VALUES ($1, 'running', 'run', '{}', '')", run
        )
        query = """INSERT INTO leases (run_id, attempt, state, policy, start_time)
                   VALUES ($1, 1, 'held', 'continue', clock_timestamp()) RETURNING id"""
        lease: uuid.UUID = await connection.fetchval(query, run)
        host = "INSERT INTO agents (name, instance_id, boot_id) VALUES ('nobody', '', '') ON CONFLICT DO NOTHING"
        await connection.execute(host)
        await connection.execute(
            """INSERT INTO places (lease_id, node, agent, session_id, boot_id, slots, expire_time)
               VALUES ($1, 0, 'nobody', gen_random_uuid(), '', '{0}', 'infinity')""",
            lease,
        )
    finally:
        await connection.close()
    return lease


def _make_lines(first: int) -> bytes:
    values = {f"metric_{n}": n + 0.5 for n in range(VALUES)}
    rows = ({"type": "metric", "step": first + n, "time": 1.7e9, "values": values} for n in range(LINES))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
