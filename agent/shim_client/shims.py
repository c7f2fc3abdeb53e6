"""The agent's side of the shims: start one, find those that live, send them requests, reap the dead.

A `Shim` is a handle without a connection of its own: each request dials, sends one line and reads one. Only `wait`
stays connected, so that the kernel reports when the shim itself was killed. Beside that it sends a request from time to
time: the shim learns that it is no orphan, and the agent that the shim is not frozen. A frozen shim keeps no deadline
and carries out no directive, so it gets SIGCONT, and is killed when that does not help; its trainer dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import stat
import sys
import time
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from agent.shim_client.jobs import (
    Exit,
    Job,
    Record,
    ShimError,
    ShimGone,
    ShimRefused,
    ShimStatus,
    ShimUnresponsive,
    value_of,
)
from agent.shim_client.orphans import kill_orphans, signal_shim
from relay.logs import get_logger

__all__ = [
    "Exit",
    "Job",
    "Record",
    "Shim",
    "ShimError",
    "ShimGone",
    "ShimRefused",
    "ShimStatus",
    "ShimUnresponsive",
    "Shims",
    "SpareShim",
    "discover",
    "prepare_runtime_dir",
]

log = get_logger(__name__)

ANSWER = 5.0  #: seconds within which a living, running shim answers
CHECK_INTERVAL = 5.0  #: seconds between two checks whether the shim of a trainer that is waited for still answers
UNRESPONSIVE_LIMIT = {"continue": 60.0, "stop": 10.0}  #: seconds without an answer after which it is killed, by policy
START = 30.0  #: seconds for the answer to a start, whose folder may lie on a slow volume
MAX_SOCKET_PATH = 107  #: bytes, the kernel's `sun_path` without its end
MAX_REPLY = 8 << 20  #: bytes

_BOOT = "import sys; sys.path.append(sys.argv.pop()); from agent.shim.server import main; main()"
_ROOT = str(Path(__file__).resolve().parent.parent.parent)


class Shim:
    """A handle on one shim, living or dead."""

    def __init__(self, path: Path, record: Record, *, child: int | None = None) -> None:
        self.path = path
        self.record = record
        self._child = child  #: its pid where this process started it, to be reaped

    @classmethod
    async def start(cls, job: Job, runtime_dir: Path, *, python: str = sys.executable) -> Self:
        """Start a shim and the trainer under it. A trainer that cannot be started has an `Exit` with an error.

        Raises ShimError when the shim itself cannot be started; no process is left then.
        """
        return await cls._start_job(await asyncio.to_thread(_IdleShim.start, runtime_dir, python), job)

    @classmethod
    async def _start_job(cls, idle: _IdleShim, job: Job) -> Self:
        try:
            async with asyncio.timeout(START):
                reply = await _exchange(
                    *await asyncio.open_unix_connection(sock=idle.lifeline, limit=MAX_REPLY), _start_line(job)
                )
        except BaseException as error:
            await idle.end()
            if isinstance(error, TimeoutError):
                raise ShimUnresponsive(f"shim {idle.path} did not start {job.lease} in {START} s") from error
            raise
        return cls(idle.path, value_of(Record, reply["record"]), child=idle.pid)

    @classmethod
    async def attach(cls, path: Path) -> Self:
        """Return the living shim behind a socket. Raises ShimGone, ShimUnresponsive, or ShimRefused for a spare."""
        reply = await _request(path, {"op": "status"})
        if reply["phase"] == "spare":
            raise ShimRefused(f"{path} is a spare")
        return cls(path, value_of(Record, reply["record"]))

    async def status(self) -> ShimStatus:
        """Return its status. Any request counts as contact and puts its orphan limit off."""
        return value_of(ShimStatus, await self._ask("status"))

    async def stop(self, grace: float, reason: str = "asked") -> None:
        """Send SIGTERM now and SIGKILL to the whole tree after `grace` seconds; a second stop can only shorten that."""
        await self._ask("stop", grace=grace, reason=reason)

    async def kill(self, reason: str = "asked") -> None:
        """Send SIGKILL to the whole tree; `wait` returns when it is gone."""
        await self._ask("kill", reason=reason)

    async def trust(self, deadline: float) -> bool:
        """Trust the trainer until `deadline` (CLOCK_BOOTTIME); return False when it is being killed or has ended."""
        return bool((await self._ask("trust", deadline=deadline))["trusted"])

    async def dump(self) -> Path:
        """Have the shim write what each process of the tree is doing, and return the file."""
        return Path((await self._ask("dump"))["path"])

    async def wait(self) -> Exit:
        """Wait until no process of it is left, and return how the trainer ended.

        When the shim itself was killed, or did not answer and had to be, what outlives it is found and killed first;
        the exit is `lost` unless it had been written.
        """
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_shim())
            ended = await self._exit()
            watching.cancel()
        return ended

    async def _watch_shim(self) -> None:
        """Wait until the shim is dead, and kill it when it does not answer for too long."""
        answered_at = time.monotonic()
        while (unanswered := time.monotonic() - answered_at) < UNRESPONSIVE_LIMIT[self.record.policy]:
            try:
                await self._ask("status")
            except ShimUnresponsive as error:
                log.warning("shim does not answer", seconds=round(unanswered), reason=error)
                await asyncio.to_thread(signal_shim, self.record, signal.SIGCONT)
            except ShimGone:  # dead, which `_exit` finds; or frozen for so long that its backlog is full
                await asyncio.sleep(CHECK_INTERVAL)
            else:
                await asyncio.sleep(CHECK_INTERVAL)
                answered_at = time.monotonic()
        if await asyncio.to_thread(signal_shim, self.record, signal.SIGKILL):
            log.error("shim killed", reason="it does not answer")

    async def _exit(self) -> Exit:
        while True:
            try:
                reply = await _exchange(*await _dial(self.path), {"op": "wait"})
                return value_of(Exit, reply["exit"])
            except ShimGone:
                if not await asyncio.to_thread(_listens, self.path):
                    return await self._recover_exit()

    async def forget(self) -> None:
        """Tell the shim that its exit was taken: it ends, and its socket and record are removed."""
        with contextlib.suppress(ShimGone):
            await self._ask("forget")
        await self._reap()
        for path in (self.path, self.path.with_suffix(".json")):
            path.unlink(missing_ok=True)

    async def _ask(self, operation: str, **arguments: object) -> Mapping[str, Any]:
        return await _request(self.path, {"op": operation, **arguments})

    async def _recover_exit(self) -> Exit:
        await self._reap()
        await kill_orphans(self.path.stem, self.record)
        written = await asyncio.to_thread(_read_json, Path(self.record.folder, "exit.json"))
        if written is not None and written.get("lease") == self.record.lease:
            return value_of(Exit, written)
        return Exit(lease=self.record.lease, started=self.record.started, lost=True)

    async def _reap(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            await _wait_for_child(child)


class Shims(Protocol):
    """The source of a host's shims."""

    async def start(self, job: Job) -> Shim:
        """Start a shim and the trainer under it, as `Shim.start` does."""

    async def discover(self) -> list[Shim]:
        """Return those that an earlier agent left, dead ones too: their `wait` reaps them and returns their exit."""


class SpareShim:
    """One shim that is started ahead, so that a start costs a fork and not an interpreter.

    The spare ends with this process, whatever happens to it, since it depends on an open connection.
    """

    def __init__(self, runtime_dir: Path, *, python: str = sys.executable) -> None:
        self._runtime_dir = runtime_dir
        self._python = python
        self._spare: _IdleShim | None = None
        self._starting = asyncio.Lock()
        self._background = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._replace_spare()
        await self._background.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background.__aexit__(None, None, None)  # one that is being started must not be left behind
        if (idle := self._take_spare()) is not None:
            await idle.end()

    async def start(self, job: Job) -> Shim:
        """Start the trainer under the spare; the next spare is started meanwhile and not waited for."""
        idle = self._take_spare()
        try:
            if idle is not None:
                with contextlib.suppress(ShimGone):  # the spare had been killed; nothing of it is left
                    return await Shim._start_job(idle, job)
            return await Shim.start(job, self._runtime_dir, python=self._python)
        finally:
            self._background.create_task(self._replace_spare(), context=Context())  # no attempt's: nothing is bound

    async def discover(self) -> list[Shim]:
        """Return those that an earlier agent left in the runtime folder."""
        return await discover(self._runtime_dir)

    async def ready(self) -> None:
        """Wait until there is a spare and it answers: the next start costs no interpreter's start."""
        await self._replace_spare()
        if self._spare is not None:
            await _request(self._spare.path, {"op": "status"})

    def _take_spare(self) -> _IdleShim | None:
        idle, self._spare = self._spare, None
        return idle

    async def _replace_spare(self) -> None:
        """Start a new spare. Without one the next start is only slower, so a failure is no error."""
        async with self._starting:
            if self._spare is None:
                try:
                    self._spare = await asyncio.to_thread(_IdleShim.start, self._runtime_dir, self._python)
                except OSError as error:
                    log.warning("no spare shim", reason=error)


async def discover(runtime_dir: Path) -> list[Shim]:
    """Return the shims that an earlier agent left, dead ones too: their `wait` reaps them and returns their exit.

    Sockets that nobody listens on and that name no lease are removed.
    """
    records = await asyncio.to_thread(_read_records, runtime_dir)
    found = {path: Shim(path, record) for path, record in records.items()}
    for path in await asyncio.to_thread(_sockets, runtime_dir):
        if path not in found and (shim := await _without_record(path)) is not None:
            found[path] = shim
    return list(found.values())


async def _without_record(path: Path) -> Shim | None:
    """Return the shim behind a socket that names no lease: it is just starting a trainer, or its record is lost."""
    try:
        return await Shim.attach(path)
    except ShimGone:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    except (ShimUnresponsive, ShimRefused):
        pass  # a spare; it ends with the agent that holds it
    return None


def _sockets(runtime_dir: Path) -> list[Path]:
    return sorted(runtime_dir.glob("*.sock"))


def _read_records(runtime_dir: Path) -> dict[Path, Record]:
    shown = {path.with_suffix(".sock"): _read_json(path) for path in sorted(runtime_dir.glob("*.json"))}
    return {path: value_of(Record, record) for path, record in shown.items() if record is not None}


def prepare_runtime_dir(path: Path) -> None:
    """Create the folder of the sockets; raise PermissionError when other users could put theirs there.

    Raises ValueError when a socket's path in it would be longer than the kernel takes.
    """
    longest = len(os.fsencode(path)) + len("/0123456789ab.sock")
    if longest > MAX_SOCKET_PATH:
        raise ValueError(f"the runtime folder's path is {longest - MAX_SOCKET_PATH} bytes too long for sockets: {path}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{path} must be a folder of this user that nobody else can write to")


# --- a shim before it has a job --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _IdleShim:
    """A started shim without a job; it ends when `lifeline` is closed."""

    path: Path
    pid: int
    lifeline: socket.socket

    @classmethod
    def start(cls, runtime_dir: Path, python: str) -> _IdleShim:
        """Start it. The socket listens before the process does, so nobody waits for it to be ready."""
        shim_id = secrets.token_hex(6)
        path = runtime_dir / f"{shim_id}.sock"
        lifeline = socket.socket(socket.AF_UNIX)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(64)
                lifeline.connect(str(path))
                pid = _spawn([python, "-I", "-S", "-c", _BOOT, shim_id, str(runtime_dir), _ROOT], listener.fileno())
        except OSError:
            lifeline.close()
            path.unlink(missing_ok=True)
            raise
        lifeline.setblocking(False)
        return cls(path, pid, lifeline)

    async def end(self) -> None:
        """End it and whatever it may have started."""
        self.lifeline.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # our own unreaped child: the pid is still its
        await _wait_for_child(self.pid)
        await kill_orphans(self.path.stem, None)
        for path in (self.path, self.path.with_suffix(".json")):
            path.unlink(missing_ok=True)


def _spawn(argv: list[str], stdin: int) -> int:
    """Start a process in a session of its own, with next to no environment: the trainer's comes with the job.

    It is not asyncio's subprocess: that kills its children when the loop is closed, and shims outlive the agent.
    """
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LANG", "LC_ALL") if name in os.environ}
    return os.posix_spawn(
        argv[0],
        argv,
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), *null],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    )


async def _wait_for_child(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        await asyncio.to_thread(os.waitpid, pid, 0)


# --- requests --------------------------------------------------------------------------------


def _start_line(job: Job) -> Mapping[str, Any]:
    return {"op": "start", "job": job.to_json()}


async def _request(path: Path, message: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(ANSWER):
            return await _exchange(*await _dial(path), message)
    except TimeoutError as error:
        raise ShimUnresponsive(f"shim {path} did not answer {message['op']} in {ANSWER} s") from error


async def _dial(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(str(path), limit=MAX_REPLY)
    except (FileNotFoundError, ConnectionError) as error:
        raise ShimGone(f"shim {path} is gone") from error


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Send one line, receive one, and close the connection."""
    try:
        writer.write(json.dumps(message).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except ConnectionError as error:
        raise ShimGone(f"a shim hung up on {message['op']}") from error
    finally:
        writer.close()
    if not line.endswith(b"\n"):
        raise ShimGone(f"a shim hung up on {message['op']}")
    reply: Mapping[str, Any] = json.loads(line)
    if not reply["ok"]:
        raise ShimRefused(reply["error"])
    return reply


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionError):
            return False
    return True


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
