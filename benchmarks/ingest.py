"""Points per second through gRPC, each acknowledged after its commit.

    python -m benchmarks.ingest [--seconds 5] [--streams 4] [--values 10]

Client, coordinator and an embedded Postgres (durable) share this machine; the client's share is in the figure.
"""

import argparse
import asyncio
import json
import tempfile
import time
import uuid
from pathlib import Path

import asyncpg
import uvloop
from grpc import aio

from coordinator.config import Config
from coordinator.server import Running, serve
from relay.v1 import agents_pb2
from relay.v1.agents_pb2_grpc import AgentsStub

LINES = 200  # in one stretch
AHEAD = 8  # stretches on their way


async def _lease(url: str, run: str) -> uuid.UUID:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "INSERT INTO runs (id, state, wanted, spec, request_digest) VALUES ($1, 'running', 'run', '{}', '')", run
        )
        query = "INSERT INTO leases (run_id, attempt, state, policy) VALUES ($1, 1, 'held', 'continue') RETURNING id"
        lease: uuid.UUID = await connection.fetchval(query, run)
    finally:
        await connection.close()
    return lease


def _stretch(first: int, values: int) -> bytes:
    point = {f"metric_{n}": n + 0.5 for n in range(values)}
    rows = ({"type": "metric", "step": first + n, "time": 1.7e9, "values": point} for n in range(LINES))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def _stream(address: str, url: str, deadline: float, values: int) -> int:
    """Points acknowledged by the deadline."""
    run = uuid.uuid4().hex
    name, offset, sent, acked = f"runs/{run}/leases/{await _lease(url, run)}", 0, 0, 0
    async with aio.insecure_channel(address) as channel:
        call = AgentsStub(channel).AppendEvents()
        while time.monotonic() < deadline or acked < sent:
            if time.monotonic() < deadline and sent - acked < AHEAD:
                data = _stretch(sent * LINES, values)
                request = agents_pb2.AppendEventsRequest(lease=name, source="events", offset=offset, data=data)
                await call.write(request)
                offset, sent = offset + len(data), sent + 1
            else:
                await call.read()
                acked += 1
        await call.done_writing()
    return acked * LINES * values


async def main(seconds: float, streams: int, values: int) -> None:
    """Start a coordinator, load it, print the figure."""
    with tempfile.TemporaryDirectory() as folder:
        stop, running = asyncio.Event(), asyncio.get_running_loop().create_future()
        config = Config(listen="127.0.0.1:0", data_dir=Path(folder))
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(config, stop, running.set_result))
            told: Running = await running
            began = time.monotonic()
            load = (_stream(told.address, told.database_url, began + seconds, values) for _ in range(streams))
            points = sum(await asyncio.gather(*load))
            print(f"{points / (time.monotonic() - began):,.0f} points/s, {streams} streams, {values} values a line")
            stop.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--values", type=int, default=10)
    uvloop.run(main(**vars(parser.parse_args())))
