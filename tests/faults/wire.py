"""A wire between two network namespaces: IP packets pass by here, and are dropped as a test says.

At one end lives a host, at the other a listening socket for it to call. Between them are two TUN devices and this
process, so nothing outside the namespaces changes, and the kernel's TCP sees what it would see on a bad line.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from tests.proxy import Way

HOST, SERVICE = "198.18.0.2", "198.18.0.1"  # of a range for measuring networks
_CLONE_NEWNET, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x40000000, 0x400454CA, 0x1, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether this machine lets us make namespaces and TUN devices."""
    tried = "ip tuntap add dev relay0 mode tun"
    try:
        return subprocess.run(["unshare", "--net", *tried.split()], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class End:
    """One end: its namespace, kept by a descriptor, and the device in it."""

    namespace: int
    device: int
    listener: socket.socket

    def close(self) -> None:
        """The namespace goes with the last process in it."""
        self.listener.close()
        os.close(self.device)
        os.close(self.namespace)


def _end(own: str, peer: str) -> End:
    """Blocking, and for a thread of its own, which it moves into a new namespace."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"relay0", _IFF_TUN | _IFF_NO_PI))
    for line in ("link set lo up", f"addr add {own} peer {peer} dev relay0", "link set relay0 up"):
        subprocess.run(["ip", *line.split()], check=True)
    return End(os.open("/proc/thread-self/ns/net", os.O_RDONLY), device, socket.create_server((own, 0)))


class Wire:
    """Perfect, until `loss` or `closed` is set."""

    def __init__(self, host: End, service: End, dice: Random) -> None:
        self.loss = 0.0  #: fraction of packets, each way
        self.closed = Way(0)  #: ways in which nothing passes
        self.dropped = 0
        self.listener = service.listener
        self.within = ("nsenter", f"--net=/proc/{os.getpid()}/fd/{host.namespace}")
        self._dice = dice

    def carry(self, way: Way, source: int, sink: int) -> None:
        """All packets that wait at one end."""
        try:
            while packet := os.read(source, 1 << 16):
                if way in self.closed or self._dice.random() < self.loss:
                    self.dropped += 1
                else:
                    os.write(sink, packet)
        except BlockingIOError:  # no more; or no room, and the packet is lost, as happens to packets
            return


@asynccontextmanager
async def wire(seed: int) -> AsyncIterator[Wire]:
    """Open a new one, which drops everything when the block ends."""
    loop = asyncio.get_running_loop()
    host, service = await _in_its_own_thread(HOST, SERVICE), await _in_its_own_thread(SERVICE, HOST)
    made = Wire(host, service, Random(seed))
    try:
        loop.add_reader(host.device, made.carry, Way.UP, host.device, service.device)
        loop.add_reader(service.device, made.carry, Way.DOWN, service.device, host.device)
        yield made
    finally:
        for end in (host, service):
            loop.remove_reader(end.device)
            end.close()


async def _in_its_own_thread(own: str, peer: str) -> End:
    """Not one of a pool: it ends in another namespace than it began."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as once:
        return await loop.run_in_executor(once, _end, own, peer)
