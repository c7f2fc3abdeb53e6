"""Assembles the coordinator: database, services and gRPC, in the order in which each needs the ones before.

A shutdown hands over: streams end with UNAVAILABLE, short calls finish, and only then do the services and the database
stop. An error that a service cannot handle ends the process, so that its supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Never

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import runfile
from coordinator.artifacts.base import Artifacts
from coordinator.artifacts.folder import FolderArtifacts
from coordinator.background import garbage_collection, planner, reaper
from coordinator.commands.events import Appender
from coordinator.config import Config
from coordinator.database import migrate, postgres
from coordinator.database.connections import Database, DatabaseAway, DatabaseTimeouts, connect_database
from coordinator.rpc.agents import AgentsService
from coordinator.rpc.artifacts import ArtifactsService
from coordinator.rpc.fleet import FleetService
from coordinator.rpc.interceptors import LARGEST_BYTES, CallGuard, DeploymentInterceptor, SecretInterceptor
from coordinator.rpc.runs import RunsService
from coordinator.rpc.sessions import HeartbeatBatcher, Sessions
from coordinator.store import deployment
from relay.backoff import Backoff
from relay.logs import get_logger
from relay.settings import SettingsError
from relay.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    artifacts_pb2,
    artifacts_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
)

_GRACE_SECONDS = 5.0  # for short calls that are under way when the coordinator is asked to stop
_HEALTH_SECONDS = 2.0
_START_SECONDS = 60.0
_START_PAUSES = 0.1, 2.0  # seconds: the longest first pause, and the longest of all
_log = get_logger(__name__)

#: Pings detect a dead connection within seconds in both directions; heartbeats detect a dead agent. The smallest
#: interval that is allowed must be below the agents' own, or they are sent away for pinging too much. A connection ends
#: after about an hour (gRPC spreads it) and its streams go on over a new one: replicas that were away get their share
#: again, which nobody would move back to them otherwise.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", LARGEST_BYTES + 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)
SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((runs_pb2, "Runs"), (agents_pb2, "Agents"), (artifacts_pb2, "Artifacts"), (fleet_pb2, "Fleet"))
)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Where a coordinator that accepts calls can be reached, and what it uses."""

    address: str  #: host:port as bound
    deployment_id: str
    database_url: str
    artifacts: Path
    store: str  #: where artifacts are kept, for users: that folder, or a bucket


async def serve(
    config: Config,
    stop: asyncio.Event,
    announce: Callable[[ServerInfo], None],
    *,
    timeouts: DatabaseTimeouts | None = None,
) -> None:
    """Serve until `stop` is set. `announce` is called once, when calls are accepted."""
    data_dir = config.data_dir.expanduser()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(open_database(config.database_url, data_dir))
        await migrate.require_head(url)
        database = await stack.enter_async_context(connect_database(url, timeouts=timeouts))
        artifacts = await asyncio.to_thread(_open_artifacts, config)
        await asyncio.to_thread(runfile.preload)
        healthy = health.aio.HealthServicer()
        heartbeats, appender = HeartbeatBatcher(database, config.timing), Appender(database)
        services = (
            lambda: _report_health(database, healthy),
            heartbeats.run,
            appender.run,
            lambda: planner.plan_forever(database, config.timing),
            lambda: reaper.reap_forever(database, config.timing),
            lambda: planner.release_forever(database, artifacts),
            lambda: garbage_collection.collect_forever(database, artifacts, config.collection),
        )
        parts = _SharedParts(database, artifacts, heartbeats, appender, await _read_deployment_id(database))
        await stack.enter_async_context(_run_in_background(*services))
        address = await stack.enter_async_context(_serve_calls(config, healthy, parts))
        store = config.artifact_store or str(config.artifacts)
        running = ServerInfo(address, parts.deployment_id, url, config.artifacts, store)
        write_atomically(data_dir / "address", f"{address}\n")
        announce(running)
        await stop.wait()


def _open_artifacts(config: Config) -> Artifacts:
    """Open the artifact store. Blocking."""
    if config.artifact_store is None:
        return FolderArtifacts(config.artifacts, limit=config.artifact_limit)
    from coordinator.artifacts.bucket import BucketArtifacts

    try:
        return BucketArtifacts(
            config.artifact_store, config.artifacts, limit=config.artifact_limit, grace=config.collection.grace
        )
    except (ImportError, ValueError) as error:
        raise SettingsError(f"--artifact-store: {error}") from error


@asynccontextmanager
async def open_database(named: str | None, data_dir: Path) -> AsyncIterator[str]:
    """Yield the URL of the named database, or of an embedded one."""
    if named:
        yield named
        return
    cluster = await asyncio.to_thread(postgres.prepare, data_dir / "postgres")
    async with postgres.embedded(cluster) as url:
        await migrate.upgrade(url)
        write_atomically(data_dir / "database-url", f"{url}\n")
        yield url


async def _read_deployment_id(database: Database) -> str:
    """Return the deployment's id. A database that is slow, or fails over, while this process starts is asked again for
    a minute; then DatabaseAway is raised.
    """
    clock, backoff = asyncio.get_running_loop().time, Backoff(*_START_PAUSES, Random())
    until = clock() + _START_SECONDS
    while True:
        try:
            async with database.connection() as connection:
                return str(await deployment.read_deployment_id(connection))
        except DatabaseAway as away:
            if clock() > until:
                raise
            _log.warning("the database is out of reach", reason=away)
            await asyncio.sleep(backoff.next_pause())


@asynccontextmanager
async def _run_in_background(*services: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run services for as long as the block lasts. One that ends, or fails, ends the block with an error."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run_forever(service)) for service in services]
        yield
        for task in tasks:
            task.cancel()


async def _run_forever(service: Callable[[], Awaitable[None]]) -> Never:
    await service()
    raise RuntimeError(f"{service} ended by itself")


@dataclass(frozen=True, slots=True)
class _SharedParts:
    """What the servicers share."""

    database: Database
    artifacts: Artifacts
    heartbeats: HeartbeatBatcher
    appender: Appender
    deployment_id: str


@asynccontextmanager
async def _serve_calls(config: Config, healthy: health.aio.HealthServicer, parts: _SharedParts) -> AsyncIterator[str]:
    """Yield the address at which calls are accepted. At the end, streams are handed over and short calls finish."""
    guard, secret = CallGuard(), [SecretInterceptor(config.secret)] if config.secret else []
    server = aio.server(interceptors=[guard, *secret, DeploymentInterceptor(parts.deployment_id)], options=OPTIONS)
    _add_servicers(server, config, parts)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    address = _bind(server, config)
    await server.start()
    try:
        yield address
    finally:
        await healthy.enter_graceful_shutdown()
        guard.close()
        await server.stop(_GRACE_SECONDS)


def _add_servicers(server: aio.Server, config: Config, parts: _SharedParts) -> None:
    database, artifacts, timing = parts.database, parts.artifacts, config.timing
    sessions = Sessions(database, timing, parts.heartbeats)
    agents = AgentsService(database, artifacts, sessions, parts.appender, timing)
    runs_pb2_grpc.add_RunsServicer_to_server(RunsService(database, artifacts, timing), server)
    agents_pb2_grpc.add_AgentsServicer_to_server(agents, server)
    fleet_pb2_grpc.add_FleetServicer_to_server(FleetService(database, timing), server)
    artifacts_pb2_grpc.add_ArtifactsServicer_to_server(ArtifactsService(artifacts), server)


def _bind(server: aio.Server, config: Config) -> str:
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise SettingsError(f"--listen {config.listen}: it cannot be listened on; is another program there?") from error
    host, _, _ = config.listen.rpartition(":")
    return f"{host}:{port}"


async def _report_health(database: Database, healthy: health.aio.HealthServicer) -> None:
    """Report SERVING while the database answers."""
    reported: str | None = "not yet"
    while True:
        away = await _find_absence(database)
        if away != reported:
            status = health_pb2.HealthCheckResponse.NOT_SERVING if away else health_pb2.HealthCheckResponse.SERVING
            for service in ("", *SERVICES):
                await healthy.set(service, status)
            if away:
                _log.warning("the database is out of reach")
            else:
                _log.info("the database answers")
            reported = away
        await asyncio.sleep(_HEALTH_SECONDS)


async def _find_absence(database: Database) -> str | None:
    """Return None while the database answers."""
    try:
        await database.ping()
    except DatabaseAway:
        return "away"
    return None


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that no reader sees half of it."""
    descriptor, half = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(half, path)
