"""Everything on one machine, and nothing of it left afterwards: `relayctl up`, and `demo` stopped by Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relayctl.local.deployment import Daemon, LocalHost

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="relay-up-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def programs_under_test(folder: Path) -> AsyncIterator[list[Daemon]]:
    """Programs under test; killed, should a test fail, with all that they started."""
    programs: list[Daemon] = []
    yield programs
    for program in programs:
        await program.end(signal.SIGKILL)
    await LocalHost("all", folder, "").vanish()


async def relayctl(folder: Path, *arguments: str) -> Daemon:
    argv = [sys.executable, "-m", "relayctl", *arguments]
    return await Daemon.start("relayctl", argv, env={"XDG_CONFIG_HOME": str(folder / "config")}, log=folder / "log")


def list_leftovers(folder: Path) -> list[str]:
    """Command lines of the processes that still have to do with this folder."""
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in LocalHost("all", folder, "").processes()]


@pytest.mark.rotating(1)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
async def test_up_comes_up_and_goes_whole(
    folder: Path, programs_under_test: list[Daemon], sign: signal.Signals
) -> None:
    program = await relayctl(folder, "up", "--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0")
    programs_under_test.append(program)
    address = (await program.seen(r"^coordinator +(\S+)")).group(1)
    await program.seen("Ctrl-C")
    second = await relayctl(folder, "agents", "-q")
    assert (await second.finished(), list(second.lines)) == (0, ["local-1"])
    assert address in (folder / "config" / "relay" / "context.json").read_text()
    assert await program.end(sign) == 0
    assert list_leftovers(folder) == []


async def test_up_ends_with_the_part_that_ended(folder: Path, programs_under_test: list[Daemon]) -> None:
    program = await relayctl(folder, "up", "--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0")
    programs_under_test.append(program)
    await program.seen("Ctrl-C")
    agents = [pid for pid in LocalHost("all", folder, "").processes() if "agent" in _command(pid)]
    os.kill(agents[0], signal.SIGKILL)
    assert await program.finished() == 1
    assert "local-1 ended by itself" in "\n".join(program.lines)
    assert list_leftovers(folder) == []


async def test_the_demo_stopped_in_the_middle_leaves_nothing(
    folder: Path, programs_under_test: list[Daemon], tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, folder / "models" / "smollm2")
    program = await relayctl(folder, "demo", "--folder", str(folder))
    programs_under_test.append(program)
    await program.seen("training begins")
    assert await program.end(signal.SIGINT) == 130
    assert list_leftovers(folder) == []


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


async def test_a_daemon_that_ends_early_says_why(folder: Path) -> None:
    argv = [sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"]
    daemon = await Daemon.start("x", argv, env={}, log=folder / "x.log")
    with pytest.raises(Exception, match=r"x ended with 3.*\n  out of luck"):
        await asyncio.wait_for(daemon.seen("never"), 30)
