"""What all tests share: one real Postgres for the whole run, and a migrated database of its own for each test."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from grpc import aio

from coordinator import migrate, postgres
from coordinator.config import Config
from coordinator.server import Running, serve
from relay.timing import TEST
from relay.v1.agents_pb2_grpc import AgentsStub
from relay.v1.artifacts_pb2_grpc import ArtifactsStub
from relay.v1.fleet_pb2_grpc import FleetStub
from relay.v1.runs_pb2_grpc import RunsStub

TEMPLATE = "relay_template"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.Cluster]:
    """The embedded server, shared by all workers of a run; it ends with the last of them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    cluster = postgres.prepare(shared / "postgres", durable=False)
    with postgres.running(cluster):
        asyncio.run(_make_template(cluster))
        yield cluster


async def _make_template(cluster: postgres.Cluster) -> None:
    async with _connected(cluster.url("postgres")) as connection:
        await connection.execute("SELECT pg_advisory_lock(1)")  # one worker makes it, the others wait
        if await connection.fetchval("SELECT datistemplate FROM pg_database WHERE datname = $1", TEMPLATE):
            return
        await connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
        await connection.execute(f"CREATE DATABASE {TEMPLATE}")
        await migrate.upgrade(cluster.url(TEMPLATE))
        await connection.execute(f"ALTER DATABASE {TEMPLATE} IS_TEMPLATE true")


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def cloned(cluster: postgres.Cluster, template: str = TEMPLATE) -> AsyncIterator[str]:
    """The URL of a fresh copy of a database, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    async with _connected(cluster.url("postgres")) as connection:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield cluster.url(name)
        finally:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database_url(postgres_server: postgres.Cluster) -> AsyncIterator[str]:
    """A migrated, empty database."""
    async with cloned(postgres_server) as url:
        yield url


@pytest.fixture
async def empty_database_url(postgres_server: postgres.Cluster) -> AsyncIterator[str]:
    """A database with nothing in it."""
    async with cloned(postgres_server, "template1") as url:
        yield url


@pytest.fixture
def short_tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Unix sockets, whose paths must be short."""
    return tmp_path_factory.mktemp("s")


@dataclass(frozen=True)
class RunningCoordinator:
    """A coordinator in this process, and stubs that call it."""

    address: str
    database_url: str
    artifact_dir: Path
    channel: aio.Channel
    runs: RunsStub
    agents: AgentsStub
    artifacts: ArtifactsStub
    fleet: FleetStub


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[RunningCoordinator]:
    """A coordinator with this configuration."""
    stop, running = asyncio.Event(), asyncio.get_running_loop().create_future()
    # In a task of its own, since a fixture is left by another task than the one that entered it.
    task = asyncio.create_task(serve(config, stop, running.set_result))
    await asyncio.wait([task, running], return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await task
    told: Running = running.result()
    try:
        async with aio.insecure_channel(told.address) as channel:
            stubs = (RunsStub(channel), AgentsStub(channel), ArtifactsStub(channel), FleetStub(channel))
            yield RunningCoordinator(told.address, told.database_url, told.artifacts, channel, *stubs)
    finally:
        stop.set()
        await task


@pytest.fixture
def coordinator_config(database_url: str, tmp_path: Path) -> Config:
    """What `coordinator` is started with; a second replica may be started with the same."""
    return Config(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "coordinator",
        artifact_dir=tmp_path / "artifacts",
        database_url=database_url,
        timing=TEST,
    )


@pytest.fixture
async def coordinator(coordinator_config: Config) -> AsyncIterator[RunningCoordinator]:
    """A coordinator on a database of its own, with the tests' timing."""
    async with serving(coordinator_config) as running:
        yield running
