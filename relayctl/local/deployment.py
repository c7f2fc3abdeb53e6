"""A deployment on one machine: a coordinator and hosts as processes of their own, each in a folder of its own.

`relayctl up`, `relayctl demo` and the end-to-end tests use it. Hosts share no folder with each other or with anyone
else, so what works here works across machines. Nothing outlives the block that started it: a daemon gets SIGTERM when
the process that started it dies, and `LocalHost.vanish` finds shims and trainers by the host's folder, which is in the
command line or the environment of each.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: Run in the child, which then becomes the program: gets SIGTERM when the parent dies. Not a `preexec_fn`, for which
#: Python would fork with the parent's gRPC threads in the middle of whatever they do.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execvp(sys.argv[1], sys.argv[1:])
"""
_KEPT_LINES = 400  #: of a daemon's output
_GRACE = 20.0  #: seconds that a daemon has to end by itself before it is killed


class FolderUnusable(Exception):
    """A folder that a user named cannot be made or written to."""


def make_folder(folder: Path, option: str) -> None:
    """Make a folder, which the user named with this option; raises FolderUnusable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderUnusable(f"{option} {folder} cannot be used: {error.strerror}; name another folder") from error


class DaemonFailed(Exception):
    """A daemon ended before it was ready; the message has the last lines that it printed."""


@dataclass(slots=True)
class Daemon:
    """A process of the deployment. Its output goes to a log file, and a line of it can be awaited."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    pump: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> Daemon:
        """Start a program in a session of its own, so that Ctrl-C does not reach it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT),
            *argv,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        daemon = cls(name, process, log)
        daemon.pump = asyncio.create_task(daemon._pump(), name=f"output of {name}")
        return daemon

    async def _pump(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("ab", buffering=0) as log:
            async for raw in self.process.stdout:
                log.write(raw)
                async with self.grown:
                    self.lines.append(raw.decode(errors="replace").rstrip())
                    self.grown.notify_all()
        await self.process.wait()
        async with self.grown:
            self.grown.notify_all()

    async def seen(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches and return the match; raises DaemonFailed when the process ends without one."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        async with self.grown:
            await self.grown.wait_for(lambda: found() or self.process.returncode is not None)
        if match := found():
            return match
        last = "\n  ".join(list(self.lines)[-8:]) or "(it printed nothing)"
        raise DaemonFailed(f"{self.name} ended with {self.process.returncode} (log: {self.log})\n  {last}")

    async def end(self, how: signal.Signals = signal.SIGTERM, grace: float = _GRACE) -> int:
        """Send a signal, kill the process after `grace` seconds, and return its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(how)
            try:
                async with asyncio.timeout(grace):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        return await self.finished()

    async def finished(self) -> int:
        """Wait until the process has ended and all its output is read, and return its exit code."""
        code = await self.process.wait()
        if self.pump is not None:
            await self.pump
        return code


@dataclass(slots=True)
class LocalCoordinator:
    """A coordinator process, with an embedded database unless it is given a URL."""

    folder: Path
    name: str = "coordinator"
    database_url: str | None = None
    timing: str = "default"
    listen: str = "127.0.0.1:0"
    arguments: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    daemon: Daemon | None = None

    @property
    def alive(self) -> bool:
        """Whether the process was started and has not ended."""
        return self.daemon is not None and self.daemon.process.returncode is None

    async def start(self) -> str:
        """Start the process and return the address that it listens on, which is the same when it is started again."""
        argv = [sys.executable, "-m", "coordinator", "serve"]
        argv += ["--listen", self.address or self.listen, "--data-dir", str(self.folder), "--timing", self.timing]
        if self.database_url:
            argv += ["--database-url", self.database_url]
        log = self.folder / f"{self.name}.log"
        self.daemon = await Daemon.start(self.name, [*argv, *self.arguments], env=self.env, log=log)
        self.address = (await self.daemon.seen(r"listening on (\S+)")).group(1)
        return self.address

    async def stop(self) -> None:
        """Stop the process as an operator would, with SIGTERM."""
        if self.daemon is not None:
            await self.daemon.end()

    async def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self.daemon is not None:
            await self.daemon.end(signal.SIGKILL)


@dataclass(slots=True)
class LocalHost:
    """What Relay sees as a host: one agent with folders for runs, data and sockets that no other process uses."""

    name: str
    folder: Path  #: short: Unix socket paths hold at most 107 bytes
    coordinator: str  #: address
    arguments: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    within: Sequence[str] = ()  #: a command that runs the agent's command line, e.g. in a namespace of its own
    daemon: Daemon | None = None

    @property
    def root(self) -> Path:
        """The folder of its runs."""
        return self.folder / "root"

    async def start(self) -> None:
        """Start the agent, and return when the coordinator has welcomed it."""
        await (await self.launch()).seen("session opened")

    async def launch(self) -> Daemon:
        """Start the agent without waiting for the coordinator's welcome."""
        argv = [*self.within, sys.executable, "-m", "agent", "run"]
        argv += ["--coordinator", self.coordinator, "--name", self.name]
        argv += ["--root", str(self.root), "--data-dir", str(self.folder / "data")]
        argv += ["--runtime-dir", str(self.folder / "sock"), *self.arguments]
        log = self.folder / "agent.log"
        self.daemon = await Daemon.start(self.name, argv, env=self.env, log=log)
        return self.daemon

    async def leave(self) -> int:
        """Stop the agent with SIGTERM, on which its runs are saved and released; return its exit code."""
        assert self.daemon is not None
        return await self.daemon.end(grace=90)

    async def detach(self) -> int:
        """Stop only the agent with SIGUSR2, while its trainers go on; return its exit code."""
        assert self.daemon is not None
        return await self.daemon.end(signal.SIGUSR2)

    async def kill_agent(self) -> None:
        """Kill the agent alone with SIGKILL."""
        assert self.daemon is not None
        await self.daemon.end(signal.SIGKILL)

    async def vanish(self) -> None:
        """Kill agent, shims and trainers with SIGKILL until none is left, as when a host is lost."""
        if self.daemon is not None and self.daemon.process.returncode is None:
            self.daemon.process.kill()
        while pids := list(self.processes()):
            for pid in pids:
                _kill(pid)
            await asyncio.gather(*(asyncio.to_thread(_wait_gone, pid) for pid in pids))
        if self.daemon is not None:
            await self.daemon.end(signal.SIGKILL)

    def processes(self) -> Iterator[int]:
        """Yield the ids of all living processes that have this host's folder in their command line or environment."""
        mark = os.fsencode(self.folder) + b"/"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid() and _belongs(entry, mark):
                yield int(entry.name)


def _belongs(process: Path, mark: bytes) -> bool:
    """Return whether the mark is in the command line of a Python or Postgres process, or in a RELAY_ variable."""
    try:
        command, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or belongs to another user
        return False
    ours = os.path.basename(command.partition(b"\0")[0]).startswith((b"python", b"postgres"))
    return (ours and mark in command) or any(
        variable.startswith(b"RELAY_") and mark in variable for variable in environ.split(b"\0")
    )


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_gone(pid: int) -> None:
    """Block until the process is dead, at most 10 s; a zombie is dead (its command line is empty)."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], 10)  # a pidfd reads ready once the process has ended
    finally:
        os.close(handle)


@dataclass(slots=True)
class LocalCluster:
    """A coordinator and its hosts by name."""

    coordinator: LocalCoordinator
    hosts: dict[str, LocalHost]


@asynccontextmanager
async def start_local_cluster(
    folder: Path, hosts: Sequence[str], *, timing: str = "default", listen: str = "127.0.0.1:0"
) -> AsyncIterator[LocalCluster]:
    """Start a coordinator with an embedded database and a host for each name, and stop all when the block ends."""
    coordinator = LocalCoordinator(folder / "coordinator", timing=timing, listen=listen)
    fleet: dict[str, LocalHost] = {}
    try:
        address = await coordinator.start()
        fleet.update({name: LocalHost(name, folder / name, address) for name in hosts})
        await asyncio.gather(*(host.start() for host in fleet.values()))
        yield LocalCluster(coordinator, fleet)
    finally:
        await asyncio.gather(*(_stop_host(host) for host in fleet.values()))
        await coordinator.stop()


async def _stop_host(host: LocalHost) -> None:
    if host.daemon is not None:
        await host.leave()
    await host.vanish()
