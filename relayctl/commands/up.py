"""`relayctl up`: a database, a coordinator and agents on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

from relay.timing import PROFILES
from relayctl.client import context
from relayctl.commands.exits import ExitCode
from relayctl.local.deployment import DaemonFailed, LocalCluster, local_cluster
from relayctl.output.format import block
from relayctl.output.terminal import note, say

_LONGEST = 60  #: characters of a data folder that leave room for Unix sockets in it (107 bytes in all)


def up(data_dir: Path | None, listen: str, hosts: int, timing: str) -> ExitCode:
    """Starts all of it, says where it is, and ends it on Ctrl-C, SIGTERM or when a part of it ends."""
    folder = (data_dir or _default_folder()).expanduser().absolute()
    if len(os.fsencode(folder)) > _LONGEST:
        note(f"{folder} is too long a path for Unix sockets; choose a shorter one with --data-dir")
        return ExitCode.USAGE
    try:
        if timing not in PROFILES:
            raise ValueError(f'there is no timing "{timing}"; known: {", ".join(PROFILES)}')
        context.checked(listen, "--listen: ")
        folder.mkdir(parents=True, exist_ok=True)
    except ValueError as mistake:
        note(str(mistake))
        return ExitCode.USAGE
    except OSError as error:
        note(f"--data-dir {folder} cannot be used: {error.strerror}; name another folder")
        return ExitCode.ERROR
    try:
        return asyncio.run(_until_stopped(folder, listen, [f"local-{n}" for n in range(1, hosts + 1)], timing))
    except DaemonFailed as failure:
        note(str(failure))
        return ExitCode.ERROR


def _default_folder() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "relay" / "up"


async def _until_stopped(folder: Path, listen: str, hosts: list[str], timing: str) -> ExitCode:
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    ready = False

    def asked() -> None:  # while it starts, stopping means not to go on starting
        stop.set()
        if not ready:
            task.cancel()

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, asked)
    note("starting …")
    try:
        async with local_cluster(folder, hosts, timing=timing, listen=listen) as cluster:
            ready = True
            written = context.write(cluster.coordinator.address)
            say(_description(cluster, folder, written))
            ended = await _first_end(cluster, stop)
            note("ending: trainers save first …")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return ExitCode.INTERRUPTED
    if ended is not None:
        raise ended
    note(f"ended; what was kept is in {folder}")
    return ExitCode.OK


def _description(cluster: LocalCluster, folder: Path, written: Path) -> str:
    free = shutil.disk_usage(folder).free / 1024**3
    return block(
        [
            ("coordinator", f"{cluster.coordinator.address} (this machine only)"),
            ("database", "embedded Postgres"),
            ("kept in", f"{folder} (stays; {free:.0f} GiB free)"),
            ("agents", ", ".join(cluster.hosts) or "none"),
            ("context", f"{written}: relayctl talks to this coordinator from now on"),
            ("next", "relayctl submit FILE, relayctl runs"),
            ("end", "Ctrl-C"),
        ]
    )


async def _first_end(cluster: LocalCluster, stop: asyncio.Event) -> DaemonFailed | None:
    """Waits until it is asked to stop (None) or a daemon ends by itself."""
    daemons = [d for d in (cluster.coordinator.daemon, *(h.daemon for h in cluster.hosts.values())) if d is not None]
    ends = {asyncio.create_task(daemon.process.wait()): daemon for daemon in daemons}
    asked = asyncio.create_task(stop.wait())
    done, pending = await asyncio.wait([asked, *ends], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if asked in done:
        return None
    daemon = ends[next(iter(done & ends.keys()))]
    last = "\n  ".join(list(daemon.lines)[-8:]) or "(it printed nothing)"
    return DaemonFailed(f"{daemon.name} ended by itself with {daemon.process.returncode} (log: {daemon.log})\n  {last}")
