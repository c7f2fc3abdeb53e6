"""The process table and exact signals, on real processes."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from agent.shim.processes import (
    AlarmClock,
    Process,
    boottime,
    descendants,
    has_handler,
    process,
    processes,
    send_signal,
)


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its input closes."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        yield child


def test_a_process_has_a_parent_and_descendants(cat: subprocess.Popen[bytes]) -> None:
    table = processes()
    assert table[cat.pid].parent == os.getpid()
    assert cat.pid in {each.pid for each in descendants({os.getpid()}, table)}
    assert cat.pid in {each.pid for each in descendants({os.getppid()}, table)}


def test_a_signal_reaches_exactly_the_process_meant(cat: subprocess.Popen[bytes]) -> None:
    """PID reuse: the same pid with another start time is somebody else."""
    now = process(cat.pid)
    assert now is not None
    impostor = Process(cat.pid, f"{cat.pid} (cat) S 1 {'0 ' * 15}1 0 {now.start_time + 1}".encode())
    assert not send_signal(impostor, signal.SIGKILL)
    assert cat.poll() is None
    assert send_signal(now, signal.SIGKILL)
    assert cat.wait() == -signal.SIGKILL
    assert not send_signal(now, signal.SIGKILL)


def test_names_with_parentheses_and_spaces_are_read() -> None:
    odd = Process(7, b"7 (a) R 9 (b)) Z 3 " + b"0 " * 15 + b"1 0 42 0")
    assert (odd.state, odd.parent, odd.threads, odd.start_time, odd.dead) == ("Z", 3, 1, 42, True)


def test_a_zombie_is_dead() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    zombie = process(child)
    assert zombie is not None and zombie.dead
    os.waitpid(child, 0)
    assert process(child) is None


def test_caught_signals_are_known(cat: subprocess.Popen[bytes]) -> None:
    assert not has_handler(cat.pid, signal.SIGUSR1)
    assert has_handler(os.getpid(), signal.SIGINT)


def test_an_alarm_for_a_moment_that_has_passed_rings_at_once() -> None:
    alarm = AlarmClock()
    alarm.set(boottime() - 5)
    assert select.select([alarm], [], [], 10)[0]
    alarm.clear()
    alarm.set(None)
    assert not select.select([alarm], [], [], 0)[0]
    os.close(alarm.fileno())
