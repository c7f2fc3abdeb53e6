"""What all tests share: one real Postgres for the whole run, and a migrated database that is empty for each test."""

import asyncio
import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from grpc import aio
from hypothesis import HealthCheck, settings

from coordinator.config import Config
from coordinator.database import migrate, postgres
from coordinator.database.connections import DatabaseTimeouts
from coordinator.database.tables import Base
from coordinator.server import ServerInfo, serve
from relay.timing import TEST
from relay.v1.agents_pb2_grpc import AgentsStub
from relay.v1.artifacts_pb2_grpc import ArtifactsStub
from relay.v1.fleet_pb2_grpc import FleetStub
from relay.v1.runs_pb2_grpc import RunsStub
from tests.seaweed import shared_seaweed

REPOSITORY = Path(__file__).resolve().parent.parent
TEMPLATE = "relay_template"
#: A busy machine makes Postgres slow, for a new connection most of all.
PATIENT = DatabaseTimeouts(connect=60, acquire=60)
pytest_plugins = ["tests.tiers", "tests.workers"]

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny_model(shared_folder: Path) -> Path:
    """A tiny model, made once for all workers, in a process of its own: few of them need the training libraries."""
    folder = shared_folder / "tiny-model"
    with (shared_folder / "tiny-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "tests.tiny", f"{folder}.half"], check=True, cwd=REPOSITORY)
            Path(f"{folder}.half").rename(folder)
    return folder


@pytest.fixture(scope="session")
def s3(shared_folder: Path) -> Iterator[str]:
    """The address of a real S3, one for all workers of a run. Each test has keys of its own in its bucket."""
    with shared_seaweed(shared_folder / "seaweed") as address:
        yield address


@pytest.fixture(scope="session")
def postgres_server(shared_folder: Path) -> Iterator[postgres.Cluster]:
    """The embedded server, shared by all workers of a run; it ends with the last of them."""
    cluster = postgres.prepare(shared_folder / "postgres", durable=False)
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
        async with _connected(cluster.url(TEMPLATE)) as template:
            await template.execute("UPDATE deployment SET system_identifier = NULL")  # what is made of it is no copy
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


async def empty(url: str) -> None:
    """Leaves the database as a migration makes it, and nobody in it. A tenth of what a fresh copy costs."""
    async with _connected(url) as connection:
        await connection.execute(
            """SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )
        await delete(connection, Base.metadata.tables)
        await connection.execute("INSERT INTO deployment DEFAULT VALUES")


async def delete(connection: asyncpg.Connection, tables: Iterable[str]) -> None:
    """Empties tables, whatever refers to whatever. Not by TRUNCATE, which deadlocks with a read at the same time."""
    statements = "".join(f"DELETE FROM {table}; " for table in tables)
    await connection.execute(f"SET session_replication_role = replica; {statements}")


@pytest.fixture(scope="session")
def database(postgres_server: postgres.Cluster) -> Iterator[str]:
    """The URL of this worker's database."""
    with asyncio.Runner() as runner:
        copy = cloned(postgres_server)
        yield runner.run(copy.__aenter__())
        runner.run(copy.__aexit__(None, None, None))


@pytest.fixture
async def database_url(database: str) -> str:
    """A migrated, empty database."""
    await empty(database)
    return database


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
    task = asyncio.create_task(serve(config, stop, running.set_result, timeouts=PATIENT))
    await asyncio.wait([task, running], return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await task
    info: ServerInfo = running.result()
    try:
        async with aio.insecure_channel(info.address) as channel:
            stubs = (RunsStub(channel), AgentsStub(channel), ArtifactsStub(channel), FleetStub(channel))
            yield RunningCoordinator(info.address, info.database_url, info.artifacts, channel, *stubs)
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
