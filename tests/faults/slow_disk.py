"""A disk that takes a megabyte in a second, for one process and what it starts: the kernel's blkio throttle (F14)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

RATE = 1 << 20  #: bytes in a second
_GROUPS = Path("/sys/fs/cgroup")
_PROBE = "import os, sys; f = open(sys.argv[1], 'wb'); f.write(os.urandom(3 << 20)); f.flush(); os.fsync(f.fileno())"


class Unthrottled(Exception):
    """It cannot be had here; says why."""


@contextmanager
def slow_disk(folder: Path) -> Iterator[Sequence[str]]:
    """What to put before a program's argv so that the disk of `folder` is slow for it. Raises Unthrottled."""
    device = _device(folder)
    with _group() as (group, limits):
        for limit, text in limits.items():
            (group / limit).write_text(text.format(device=device, rate=RATE))
        within = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        began = time.monotonic()
        subprocess.run([*within, sys.executable, "-c", _PROBE, str(folder / "probe")], check=True)
        if time.monotonic() - began < 2.0:
            raise Unthrottled("the kernel does not hold writes to this disk back")
        yield within


def _device(folder: Path) -> str:
    """The whole disk's number: a partition is not throttled."""
    number = os.stat(folder).st_dev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not block.exists():
        raise Unthrottled(f"{folder} lies on no disk of its own")
    disk = block.resolve()
    return (disk.parent if (disk / "partition").exists() else disk).joinpath("dev").read_text().strip()


@contextmanager
def _group() -> Iterator[tuple[Path, dict[str, str]]]:
    """A control group of ours, of whichever version there is, and its limits by file."""
    name = f"relay-{uuid.uuid4().hex[:8]}"
    for parent, file, text in (
        (_GROUPS / "blkio", "blkio.throttle.write_bps_device", "{device} {rate}"),
        (_GROUPS, "io.max", "{device} wbps={rate}"),
    ):
        group = parent / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / file).exists():
                yield group, {file: text}
                return
        finally:
            while pids := (group / "cgroup.procs").read_text().split():
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        (parent / "cgroup.procs").write_text(pid)
            group.rmdir()
    raise Unthrottled("control groups for disks are not to be had by this user")
