"""What lives on of a dead shim's tree: found by its mark and by who its trainer was, and killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from agent.jobs import Record
from agent.shim.processes import Process, descendants, process, processes, send_signal
from agent.shim.tree import MARK


async def end_survivors(shim_id: str, record: Record | None) -> None:
    """Kill what lives on of a dead shim's tree; returns when it is gone."""
    while survivors := await asyncio.to_thread(find_survivors, shim_id, record):
        for each in survivors:
            send_signal(each, signal.SIGKILL)
        await asyncio.gather(*map(gone, survivors))


def find_survivors(shim_id: str, record: Record | None) -> list[Process]:
    """Processes that carry the shim's mark, its trainer, and all below them; none of them dead."""
    table = processes()
    roots = {
        pid for pid, each in table.items() if (record is not None and record.names(each)) or _carries(pid, shim_id)
    }
    found = {each.pid: each for each in descendants(roots, table)} | {pid: table[pid] for pid in roots}
    return [each for each in found.values() if not each.dead]


def _carries(pid: int, shim_id: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return False
    return f"{MARK}={shim_id}".encode() in environment.split(b"\0")


async def gone(target: Process) -> None:
    """Until exactly this process is dead, be it reaped or not."""
    try:
        handle = os.pidfd_open(target.pid)
    except ProcessLookupError:
        return
    loop, dead = asyncio.get_running_loop(), asyncio.Event()
    try:
        now = process(target.pid)
        if now is not None and now.start_time == target.start_time:
            loop.add_reader(handle, dead.set)
            await dead.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
