"""Shims from outside: one that does not answer, and the processes that outlive a dead one.

The shim is found by its pid and its name among its arguments; its tree by the mark in every environment and by the
trainer's pid and start time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from agent.shim.processes import Process, descendants, process, processes, send_signal
from agent.shim.tree import MARK
from agent.shim_client.jobs import Record


def signal_shim(record: Record, signum: int) -> bool:
    """Signal the shim itself; return False when it is gone."""
    found = process(record.shim_pid) if record.shim_pid and not record.rebooted else None
    return found is not None and _is_called(found.pid, record.shim) and send_signal(found, signum)


def _is_called(pid: int, shim_id: str) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # gone
        return False
    return shim_id.encode() in arguments.split(b"\0")


async def kill_orphans(shim_id: str, record: Record | None) -> None:
    """Kill what outlives a dead shim, and return when it is gone."""
    while survivors := await asyncio.to_thread(find_orphans, shim_id, record):
        for each in survivors:
            send_signal(each, signal.SIGKILL)
        await asyncio.gather(*map(wait_gone, survivors))


def find_orphans(shim_id: str, record: Record | None) -> list[Process]:
    """Return the living processes that carry the shim's mark, its trainer, and all below them."""
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


async def wait_gone(target: Process) -> None:
    """Wait until exactly this process is dead, reaped or not."""
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
