"""`relayctl up`: run a database, a coordinator and agents on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Annotated

import typer

from relay.timing import PROFILES
from relayctl.client.context import check_address, write_context
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.local.deployment import DaemonFailed, FolderUnusable, LocalCluster, make_folder, start_local_cluster
from relayctl.output.format import format_block
from relayctl.output.terminal import note, say

_LONGEST = 60  #: characters of a data folder's path that leave room for Unix sockets in it (107 bytes in all)


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep everything in this folder [~/.local/share/relay/up].", show_default=False
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Let the coordinator listen here.")
    ] = "127.0.0.1:7070",
    agents: Annotated[int, typer.Option("--agents", min=0, max=16, metavar="N", help="Start N agents.")] = 1,
    timing: Annotated[str, typer.Option(help="Set the lease timing: default, wan or test.")] = "default",
) -> None:
    """Run a database, a coordinator and agents here until Ctrl-C."""
    try:
        folder = _prepare_folder(data_dir)
        if timing not in PROFILES:
            raise UsageMistake(f'there is no timing "{timing}"; known: {", ".join(PROFILES)}')
        check_address(listen, "--listen: ")
        code = asyncio.run(_run(folder, listen, [f"local-{number}" for number in range(1, agents + 1)], timing))
    except (UsageMistake, ValueError) as error:
        note(str(error))
        code = ExitCode.USAGE
    except (DaemonFailed, FolderUnusable) as error:
        note(str(error))
        code = ExitCode.ERROR
    raise typer.Exit(code)


def _prepare_folder(data_dir: Path | None) -> Path:
    """Make the data folder and return its absolute path."""
    folder = (data_dir or _locate_default_folder()).expanduser().absolute()
    if len(os.fsencode(folder)) > _LONGEST:
        raise UsageMistake(f"{folder} is too long a path for Unix sockets; choose a shorter one with --data-dir")
    make_folder(folder, "--data-dir")
    return folder


def _locate_default_folder() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "relay" / "up"


async def _run(folder: Path, listen: str, hosts: list[str], timing: str) -> ExitCode:
    """Start everything, print where it is, and stop it on Ctrl-C, on SIGTERM or when a part of it ends."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    ready = False

    def request_stop() -> None:  # while it starts, stopping means not to go on starting
        stop.set()
        if not ready:
            task.cancel()

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, request_stop)
    note("starting …")
    try:
        async with start_local_cluster(folder, hosts, timing=timing, listen=listen) as cluster:
            ready = True
            context_path = write_context(cluster.coordinator.address)
            say(_describe(cluster, folder, context_path))
            failure = await _wait_for_end(cluster, stop)
            note("stopping: trainers save first …")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return ExitCode.INTERRUPTED
    if failure is not None:
        raise failure
    note(f"stopped; the data is kept in {folder}")
    return ExitCode.OK


def _describe(cluster: LocalCluster, folder: Path, context_path: Path) -> str:
    free = shutil.disk_usage(folder).free / 1024**3
    return format_block(
        [
            ("coordinator", f"{cluster.coordinator.address} (this machine only)"),
            ("database", "embedded Postgres"),
            ("kept in", f"{folder} (stays; {free:.0f} GiB free)"),
            ("agents", ", ".join(cluster.hosts) or "none"),
            ("context", f"{context_path}: relayctl talks to this coordinator from now on"),
            ("next", "relayctl submit FILE, relayctl runs"),
            ("end", "Ctrl-C"),
        ]
    )


async def _wait_for_end(cluster: LocalCluster, stop: asyncio.Event) -> DaemonFailed | None:
    """Wait until a stop is requested, and return None; or until a daemon ends by itself, and return its failure."""
    daemons = [d for d in (cluster.coordinator.daemon, *(h.daemon for h in cluster.hosts.values())) if d is not None]
    ends = {asyncio.create_task(daemon.process.wait()): daemon for daemon in daemons}
    requested = asyncio.create_task(stop.wait())
    done, pending = await asyncio.wait([requested, *ends], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if requested in done:
        return None
    daemon = ends[next(iter(done & ends.keys()))]
    last = "\n  ".join(list(daemon.lines)[-8:]) or "(it printed nothing)"
    return DaemonFailed(f"{daemon.name} ended by itself with {daemon.process.returncode} (log: {daemon.log})\n  {last}")
