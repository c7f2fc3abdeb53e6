"""A host in a folder: a real agent process, real shims, real trainers, and the coordinator that a test scripts."""

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STUB = REPOSITORY / "tests" / "stub_trainer.py"


@dataclass
class Host:
    """One agent process after another on one disk."""

    folder: Path
    address: str
    arguments: list[str] = field(default_factory=list)
    agent: asyncio.subprocess.Process | None = None
    environment: dict[str, str] = field(default_factory=dict)  #: of its own

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    async def start(self) -> None:
        options = {"--root": self.root, "--data-dir": self.folder / "data", "--runtime-dir": self.folder / "sock"}
        argv = [sys.executable, "-m", "agent", "--coordinator", self.address, "--name", "a"]
        argv += [str(part) for option in options.items() for part in option] + self.arguments
        with self.log.open("ab") as log:
            self.agent = await asyncio.create_subprocess_exec(
                *argv,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'proto'}"} | self.environment,
                stderr=log,
            )

    async def end(self, signum: int = signal.SIGTERM) -> int:
        """Signal the agent; its exit code."""
        assert self.agent is not None
        self.agent.send_signal(signum)
        async with asyncio.timeout(60):
            return await self.agent.wait()

    def attempt(self, run: str, attempt: str = "1-11111111") -> Path:
        return self.root / "runs" / run / "attempts" / attempt

    def trainer(self, run: str, attempt: str = "1-11111111") -> int:
        """The pid of an attempt's trainer."""
        return int(json.loads((self.attempt(run, attempt) / "shim.json").read_text())["pid"])

    def processes(self) -> list[int]:
        """Everything of this host that lives, its agent included."""
        mark = os.fsencode(self.folder)
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and mentions(entry, mark)]
        return [pid for pid in found if pid != os.getpid()]

    async def vanish(self) -> None:
        """Power off."""
        while pids := self.processes():
            for pid in pids:
                kill(pid)
            await asyncio.gather(*(asyncio.to_thread(gone, pid) for pid in pids))
        if self.agent is not None:
            await self.agent.wait()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def gone(pid: int) -> None:
    """Blocks until the process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], 10)
    finally:
        os.close(handle)


def mentions(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "cmdline").read_bytes() or mark in (process / "environ").read_bytes()
    except OSError:
        return False


def stub(name: str = "r", **env: Any) -> dict[str, Any]:
    """A run file that trains with the stub; STUB_ settings in small letters and without their prefix."""
    settings = {f"STUB_{key.upper()}": str(value) for key, value in env.items()}
    return {
        "version": "relay/v1",
        "name": name,
        "method": "command",
        "command": [sys.executable, str(STUB)],
        "env": settings,
        "resources": {"gpus_per_node": 0},
    }


MakeHost = Callable[..., Host]


class Gate:
    """A FIFO through which a test lets a stub trainer make its steps."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR)

    def let(self, steps: int) -> None:
        os.write(self._fd, b"." * steps)
