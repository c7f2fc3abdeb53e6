"""Postgres servers that a test kills, promotes and restores, each in a folder of its own, and one address before them.

They listen on Unix sockets only: whoever wants TCP goes through a proxy of the test's, so no port has to be guessed. No
server has `fsync` (what is killed here is processes, not machines), but each makes a commit durable before it is
acknowledged. Its standbys are asynchronous, unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from coordinator.database import migrate, postgres
from coordinator.database.postgres_programs import ProcessIdentity
from relayctl.local.deployment import Daemon
from tests.proxy import Proxy

DATABASE = USER = postgres.USER
#: A standby confirms only what a session asks it to (`Server.caught_up`): nothing else waits for it.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_standby_names": "*",
    "synchronous_commit": "local",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
    "autovacuum": "off",
    "timezone": "UTC",
}


@dataclass(slots=True)
class Server:
    """One server, whatever becomes of it."""

    cluster: postgres.Cluster
    env: Mapping[str, str] = field(default_factory=dict)
    daemon: Daemon | None = None

    @property
    def socket(self) -> str:
        """Where it listens."""
        return str(self.cluster.socket_folder / postgres.SOCKET_NAME)

    def url(self, database: str = DATABASE) -> str:
        """For whoever means this very server."""
        return self.cluster.url(database)

    async def start(self) -> None:
        """Returns when it takes connections; what a dead one left is recovered first."""
        await asyncio.to_thread(self.cluster.clear_stale)
        where = f"--unix_socket_directories={self.cluster.socket_folder}"
        program = [str(self.cluster.binaries / "postgres"), "-D", str(self.cluster.data), where]
        self.daemon = await Daemon.start(
            self.cluster.folder.name, [*_as(self.cluster.identity), *program], env=self.env, log=self.cluster.log
        )
        await self.daemon.seen("ready to accept")

    async def wait_for_log(self, words: str) -> None:
        """Until its log has them."""
        assert self.daemon is not None
        await self.daemon.seen(words)

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: SIGTERM is a smart shutdown, SIGINT a fast one, SIGQUIT an immediate one."""
        if self.daemon is not None:
            await self.daemon.end(how)

    async def crash(self) -> None:
        """SIGKILL, all its processes at once."""
        assert self.daemon is not None
        server = self.daemon.process.pid
        os.kill(server, signal.SIGSTOP)  # it makes no new ones while we count
        processes = [os.pidfd_open(pid) for pid in (server, *_children(server))]
        for process in processes:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        for process in processes:
            await asyncio.to_thread(select.select, [process], [], [])  # it reads ready once the process has ended
            os.close(process)
        await self.daemon.finished()

    async def query(self, query: str, *arguments: object, database: str = DATABASE) -> Any:
        """The first value of the first row."""
        async with connected(self.url(database)) as connection:
            return await connection.fetchval(query, *arguments)

    async def run(self, program: str, *arguments: str) -> None:
        """One of Postgres's client programs, on this server."""
        argv = [str(self.cluster.binaries / program), "-h", str(self.cluster.socket_folder), "-U", USER]
        await asyncio.to_thread(self.cluster.identity.run, [*argv, *arguments])

    async def caught_up(self) -> None:
        """Until a standby has applied all that is committed here; also until there is one."""
        async with connected(self.url()) as connection:
            await connection.execute("SET synchronous_commit = remote_apply")
            await connection.execute("SELECT pg_logical_emit_message(true, 'tests', '')")

    async def promote(self) -> None:
        """A standby becomes a primary, on a timeline of its own."""
        assert await self.query("SELECT pg_promote()")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _as(identity: ProcessIdentity) -> list[str]:
    if identity.uid is None:
        return list(identity.prefix)
    return ["setpriv", f"--reuid={identity.uid}", f"--regid={identity.gid}", "--clear-groups", "--pdeathsig=keep"]


def _prepared(folder: Path) -> postgres.Cluster:
    cluster = postgres.prepare(folder, durable=False)
    for made in (cluster.folder, cluster.socket_folder):
        made.mkdir(exist_ok=True)
        os.chown(made, cluster.identity.owner, -1)
    return cluster


def _initialise(cluster: postgres.Cluster) -> None:
    cluster.initialise()
    with (cluster.data / "postgresql.conf").open("a") as settings:
        settings.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection for as long as the block lasts."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


@dataclass(slots=True)
class Site:
    """One address for the database, whichever server is behind it just now."""

    folder: Path
    line: Proxy  #: from the replicas to the server
    servers: list[Server] = field(default_factory=list)
    primary: Server = field(init=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """The URL that replicas connect to."""
        return f"postgresql://{USER}@{self.line.address}/{DATABASE}"

    async def server(self, **more: Any) -> Server:
        """A server of a new cluster with nothing in it, running."""
        cluster = _prepared(self.folder / f"pg-{next(self._numbers)}")
        await asyncio.to_thread(_initialise, cluster)
        server = Server(cluster, **more)
        self.servers.append(server)
        await server.start()
        await server.query(f"CREATE DATABASE {DATABASE}", database="postgres")
        return server

    async def standby(self, replication: Proxy) -> Server:
        """A standby of the primary, which it follows through `replication`, caught up."""
        replication.upstreams[:] = [self.primary.socket]
        cluster = _prepared(self.folder / f"pg-{next(self._numbers)}")
        host, port = replication.address.split(":")
        source = f"host={host} port={port} user={USER} application_name=standby"
        copy = [str(cluster.binaries / "pg_basebackup"), "-d", source, "-D", str(cluster.data)]
        await asyncio.to_thread(
            cluster.identity.run, [*copy, "--checkpoint=fast", "--write-recovery-conf", "--no-sync"]
        )
        standby = Server(cluster)
        self.servers.append(standby)
        await standby.start()
        await self.primary.caught_up()
        return standby

    def turn_to(self, server: Server) -> None:
        """From now on this one answers."""
        self.primary = server
        self.line.upstreams[:] = [server.socket]
        self.line.cut()

    def turn_away(self) -> None:
        """Nobody answers."""
        self.line.upstreams[:] = []
        self.line.cut()

    async def remove_others(self) -> None:
        """Ends and removes every server but the one that answers."""
        for server in [server for server in self.servers if server is not self.primary]:
            await server.stop(signal.SIGQUIT)
            await asyncio.to_thread(shutil.rmtree, server.cluster.folder)
            self.servers.remove(server)


@asynccontextmanager
async def site_in(folder: Path, **more: Any) -> AsyncIterator[Site]:
    """A site with one migrated server; nothing of it is left afterwards."""
    async with Proxy([]) as line:
        site = Site(folder, line)
        try:
            server = await site.server(**more)
            await migrate.upgrade(server.url())
            site.turn_to(server)
            yield site
        finally:
            await asyncio.gather(*(server.stop(signal.SIGQUIT) for server in site.servers))
