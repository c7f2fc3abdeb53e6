"""The embedded Postgres: a server on a Unix socket, for coordinators that are started without a database URL.

`embedded(folder)` starts a server, or joins the one that another process already runs there, and yields its URL.
Whoever uses the server holds a shared lock on `users.lock`; a keeper process (see `postgres_keeper`) stops it when no
user is left. So no server outlives its coordinators, however they end, and replicas on one machine share one.

    start.lock   held while a process starts or stops the server, which makes the steps below one step
    users.lock   shared by the users; exclusively held by the keeper while it stops the server
    keeper.lock  held by the keeper for its whole life: when it is free, no keeper looks after a server here

Not promised: that a folder which several machines share is safe on a file system whose locks are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg

from coordinator.database import postgres_keeper
from coordinator.database.postgres_programs import (
    PostgresError,
    ProcessIdentity,
    choose_process_identity,
    find_programs,
    reachable_binaries,
    reachable_folder,
    short_digest,
)

__all__ = ["Cluster", "PostgresError", "embedded", "prepare", "running"]

USER = "relay"
START_SECONDS = 60.0  # recovery after a crash included
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_MAX = 107  # bytes, the kernel's limit
_POLL = 0.02  # seconds; file locks and postmaster.pid have nothing to wait on


@dataclass(frozen=True, slots=True)
class Cluster:
    """The folder of a server: its locks, its data, its socket, and how its programs are run."""

    folder: Path
    binaries: Path
    identity: ProcessIdentity
    durable: bool = True  #: False only for tests: what was committed may be lost with the machine

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def socket_folder(self) -> Path:
        """The folder of the socket: inside, or in the folder for temporary files when the path would be too long for
        the kernel.
        """
        inside = self.folder / "socket"
        if len(os.fsencode(inside / SOCKET_NAME)) <= SOCKET_PATH_MAX:
            return inside
        return Path(tempfile.gettempdir()) / f"relay-postgres-{short_digest(self.folder)}"

    def url(self, database: str = USER) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.socket_folder), safe='/')}"

    def status(self) -> str | None:
        """Return what the server says of itself, `ready`, `starting` …; None when it says nothing."""
        lines = self._pid_file()
        return lines[7].strip() if len(lines) > 7 else None

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def clear_stale(self) -> None:
        """Stop a server that lost its keeper, and delete what a dead one left.

        Postgres takes a stale postmaster.pid for a live one when its number now belongs to any other process, as soon
        happens in a container. A server's working directory is its data, so that is what is checked.
        """
        lines = self._pid_file()
        if lines and self._is_ours(int(lines[0])):
            _stop_server(int(lines[0]))
        for name in (self.data / "postmaster.pid", self.socket_folder / f"{SOCKET_NAME}.lock"):
            name.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.path.samefile(f"/proc/{pid}/cwd", self.data)
        except OSError:
            return False

    def initialise(self) -> None:
        """Create the data folder, whole or not at all."""
        half = self.folder / "data.new"
        shutil.rmtree(half, ignore_errors=True)
        self._own(half)
        program = str(self.binaries / "initdb")
        settings = ["--username", USER, "--auth-local=trust", "--auth-host=reject", "--no-locale", "--encoding=UTF8"]
        self.identity.run([program, "-D", str(half), *settings, "--no-instructions", "--no-sync"])
        if self.durable:
            os.sync()  # once, instead of initdb's fsync of a thousand files
        half.rename(self.data)

    def _own(self, folder: Path, *, adopt: bool = False) -> None:
        """Make a folder belong to the server alone. With `adopt`, also one that it owned under another identity."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
        if stat.S_ISLNK(found.st_mode) or not (adopt or found.st_uid in (self.identity.owner, os.geteuid())):
            raise PostgresError(f"{folder} belongs to somebody else")
        if found.st_uid != self.identity.owner:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.identity.owner, -1, follow_symlinks=False)
        folder.chmod(0o700)

    def launch(self, keeper_lock: int) -> None:
        """Start the keeper, and with it the server. The keeper inherits the lock that shows that it lives."""
        self._check_version()
        self._own(self.data, adopt=True)
        self._own(self.socket_folder)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        order = {
            "argv": [*self.identity.prefix, str(self.binaries / "postgres"), "-D", str(self.data), *self._settings()],
            "uid": self.identity.uid,
            "gid": self.identity.gid,
            "log": str(self.log),
            "users": str(self.folder / "users.lock"),
        }
        subprocess.run(
            [sys.executable, "-I", "-S", postgres_keeper.__file__, json.dumps(order)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(keeper_lock,),
            start_new_session=True,
        )

    def _check_version(self) -> None:
        printed = subprocess.run([self.binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        ours = printed.stdout.split()[2].split(".")[0]
        theirs = (self.data / "PG_VERSION").read_text().strip()
        if ours != theirs:
            raise PostgresError(f"{self.data} was made by Postgres {theirs}, and this is {ours}: dump and restore it")

    def _settings(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            # A container's /dev/shm may be tiny, and nothing here gains from parallel plans or compiled ones.
            "max_parallel_workers_per_gather": "0",
            "jit": "off",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _stop_server(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
        _wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), "the server that was left there to stop")


def _wait_until(fact: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise PostgresError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(_POLL)


class _Lock:
    """A lock on a file; the kernel releases it when its holder ends."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, mode: int) -> bool:
        """Take LOCK_SH or LOCK_EX if it is free now; return whether it was."""
        try:
            fcntl.flock(self.descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def _open_lock(path: Path) -> Iterator[_Lock]:
    lock = _Lock(path)
    try:
        yield lock
    finally:
        lock.close()


@contextmanager
def _hold_start_lock(folder: Path) -> Iterator[None]:
    with _open_lock(folder / "start.lock") as lock:
        _wait_until(lambda: lock.take(fcntl.LOCK_EX), f"another process that starts or stops the server in {folder}")
        yield


def _join_server(cluster: Cluster) -> _Lock:
    """Become a user of the server, starting it if it does not run; return the lock that makes this process a user."""
    with _hold_start_lock(cluster.folder):
        users = _Lock(cluster.folder / "users.lock")
        try:
            # A keeper that has it exclusively is stopping the server; while we have it, none can begin to.
            _wait_until(lambda: users.take(fcntl.LOCK_SH), f"the server in {cluster.folder} to stop")
            if not _has_keeper(cluster.folder):
                _start_server(cluster)
            _wait_until(lambda: _is_ready(cluster), f"Postgres to be ready; see {cluster.log}")
        except BaseException:
            users.close()
            raise
    return users


def _start_server(cluster: Cluster) -> None:
    cluster.clear_stale()
    if not cluster.data.exists():
        cluster.initialise()
    with _open_lock(cluster.folder / "keeper.lock") as keeper:
        keeper.take(fcntl.LOCK_EX)
        cluster.launch(keeper.descriptor)


def _is_ready(cluster: Cluster) -> bool:
    if cluster.status() == "ready":
        return True
    if not _has_keeper(cluster.folder):
        raise PostgresError(f"Postgres did not start: {_read_log_tail(cluster.log)}")
    return False


def _read_log_tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace").strip()[-2000:]
    except FileNotFoundError:
        return "it left no log"


def _has_keeper(folder: Path) -> bool:
    """Return whether a keeper lives."""
    with _open_lock(folder / "keeper.lock") as lock:
        return not lock.take(fcntl.LOCK_EX)


def _leave_server(cluster: Cluster, users: _Lock) -> None:
    """Stop being a user; the last one waits until the server has stopped."""
    with _hold_start_lock(cluster.folder):
        # Having it exclusively means being the last; having neither means that the keeper already stops the server.
        others = not users.take(fcntl.LOCK_EX) and users.take(fcntl.LOCK_SH)
        users.close()
        if not others:
            _wait_until(lambda: not _has_keeper(cluster.folder), "Postgres to stop")


def prepare(
    folder: Path, *, durable: bool = True, identity: ProcessIdentity | None = None, binaries: Path | None = None
) -> Cluster:
    """Return the cluster of a folder, which is created, in a place that the server can reach."""
    identity = identity or choose_process_identity()
    folder.mkdir(parents=True, exist_ok=True)
    folder, binaries = folder.resolve(), find_programs(binaries)
    if identity.uid is not None:
        folder, binaries = reachable_folder(folder), reachable_binaries(binaries)
    return Cluster(folder, binaries, identity, durable)


@contextmanager
def running(cluster: Cluster) -> Iterator[None]:
    """Run the server for as long as the block lasts."""
    users = _join_server(cluster)
    try:
        yield
    finally:
        _leave_server(cluster, users)


@asynccontextmanager
async def embedded(cluster: Cluster) -> AsyncIterator[str]:
    """Yield the URL of a running server with a database for the coordinator, for as long as the block lasts."""
    users = await asyncio.to_thread(_join_server, cluster)
    try:
        await _create_database(cluster)
        yield cluster.url()
    finally:
        await asyncio.shield(asyncio.to_thread(_leave_server, cluster, users))


async def _create_database(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.url("postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {USER}")
    except asyncpg.DuplicateDatabaseError:
        pass  # also when another replica was faster
    finally:
        await connection.close()
