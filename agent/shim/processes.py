"""What the shim and its reapers need of Linux: the process table, exact signals, a clock.

It imports little of the standard library, since a run waits for this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs milliseconds that every run would wait for
    from collections.abc import Iterator, Mapping

if not sys.platform.startswith("linux"):
    raise ImportError("Relay's agent and shim need Linux (subreaper, pidfd, timerfd): use a container or WSL")

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def boottime() -> float:
    """Return the seconds on the clock that all deadlines use: monotonic, and counting through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's id of this boot; a pid means nothing outside it."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def become_subreaper() -> None:
    """Make orphaned descendants children of this process from now on."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def take_priority() -> None:
    """Take priority over all other processes, where that is allowed; children forked from here do not inherit it."""
    first = os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, first)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent's thread ends; its own children do not get that signal."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


class Process:
    """One line of the process table. (pid, start_time) is never reused within a boot."""

    __slots__ = ("parent", "pid", "start_time", "state", "threads")

    def __init__(self, pid: int, stat: bytes) -> None:
        fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold anything, ")" too
        self.pid = pid
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.threads = int(fields[17])
        self.start_time = int(fields[19])  # clock ticks since boot

    @property
    def dead(self) -> bool:
        """Whether it is dead, also when a PID 1 that does not reap leaves it as a zombie."""
        return self.state in "XZ" and self.threads <= 1


def process(pid: int) -> Process | None:
    """Return the process with this pid, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return Process(pid, file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def processes() -> dict[int, Process]:
    """Return all processes. (/proc/*/task/*/children would be less to read; many kernels lack it.)"""
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {each.pid: each for each in found if each is not None}


def descendants(roots: set[int], table: Mapping[int, Process]) -> Iterator[Process]:
    """Return the descendants of `roots`, without the roots."""
    children: dict[int, list[Process]] = {}
    for each in table.values():
        children.setdefault(each.parent, []).append(each)
    queue = list(roots)
    while queue:
        for child in children.get(queue.pop(), ()):
            queue.append(child.pid)
            if not child.dead:
                yield child


def send_signal(target: Process, signum: int) -> bool:
    """Signal exactly this process, never a later one with its pid; return False when it is gone or not ours."""
    try:
        handle = os.pidfd_open(target.pid)
    except ProcessLookupError:
        return False
    try:
        now = process(target.pid)
        if now is None or now.start_time != target.start_time:
            return False
        signal.pidfd_send_signal(handle, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def has_handler(pid: int, signum: int) -> bool:
    """Return whether the process has a handler for `signum`; without one most signals would kill it."""
    try:
        with open(f"/proc/{pid}/status") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(masks and masks[0] >> (signum - 1) & 1)


class AlarmClock:
    """A file descriptor that becomes readable at a moment of CLOCK_BOOTTIME, also after a suspend."""

    _ABSOLUTE, _FLAGS = 1, os.O_NONBLOCK | os.O_CLOEXEC

    def __init__(self) -> None:
        self._fd = _libc.timerfd_create(time.CLOCK_BOOTTIME, self._FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create(CLOCK_BOOTTIME)")

    def fileno(self) -> int:
        return int(self._fd)

    def set(self, moment: float | None) -> None:
        """Become readable at `moment`, or never. A moment that has passed makes it readable at once."""
        nanoseconds = 0 if moment is None else max(1, int(moment * 1e9))
        setting = (ctypes.c_long * 4)(0, 0, nanoseconds // 10**9, nanoseconds % 10**9)
        _libc.timerfd_settime(self._fd, self._ABSOLUTE, setting, None)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
