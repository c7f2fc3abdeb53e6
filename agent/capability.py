"""What this host has (row C1) and how loaded it is. Limits of the control group count, not the machine's size.

Blocking, some of it for a second: call it in a thread. GPUs are read from the driver (NVML); without the library or the
driver there are none. The versions of the trainers' libraries are read from metadata, without importing them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.settings import version

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  #: bytes; version 1 writes a huge number for "no limit"

_ASK_VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `memory` is in bytes."""

    index: int
    uuid: str
    model: str
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """The resources and versions of a host; sizes in bytes."""

    hostname: str
    cpus: int
    memory: int
    disk_free: int
    gpus: tuple[Gpu, ...]
    versions: dict[str, str]
    commit: str
    platform: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The load of one GPU: use from 0 to 1, bytes in use, degrees Celsius."""

    index: int
    use: float
    memory_used: int
    temperature: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The load of the host: CPU use since the last reading from 0 to 1, sizes in bytes."""

    cpu: float
    memory_used: int
    disk_free: int
    gpus: tuple[GpuReading, ...]


def detect(root: Path, python: str) -> Capability:
    """Return what this host has. `root` is the run root, `python` the trainers' interpreter."""
    with _nvml() as nvml:
        gpus = tuple(_gpus(nvml))
        versions = versions_of(python) | _driver_versions(nvml) | _relay_version()
    return Capability(
        hostname=socket.gethostname(),
        cpus=cpu_limit(),
        memory=memory_limit(),
        disk_free=disk_free(root),
        gpus=gpus,
        versions=versions,
        commit=commit_of(Path(__file__).parent),
        platform=f"{platform.system().lower()}/{platform.machine()}",
    )


class Meter:
    """Reads the load; CPU use is counted between two readings."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cpus = cpu_limit()
        self._before = (time.monotonic(), cpu_seconds())

    def read(self) -> Readings:
        now = (time.monotonic(), cpu_seconds())
        elapsed, used = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        with _nvml() as nvml:
            gpus = tuple(_gpu_readings(nvml))
        share = used / (elapsed * self._cpus) if elapsed > 0 else 0.0
        return Readings(
            cpu=min(1.0, max(0.0, share)), memory_used=memory_used(), disk_free=disk_free(self._root), gpus=gpus
        )


# --- CPUs, memory, disk ----------------------------------------------------------------------


def cpu_limit(cgroup: Path = _CGROUP) -> int:
    """Return how many CPUs this process may use: its affinity, limited by the control group's quota (rounded up)."""
    quota = _read(cgroup / "cpu.max") or " ".join(
        _read(cgroup / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    )
    allowed = len(os.sched_getaffinity(0))
    match quota.split():
        case [limit, period] if limit.isdigit() and int(period) > 0:
            return max(1, min(allowed, -(-int(limit) // int(period))))
        case _:
            return allowed


def memory_limit(cgroup: Path = _CGROUP) -> int:
    """Return how many bytes of memory this process may use."""
    limits = [_read(cgroup / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *(int(limit) for limit in limits if limit.isdigit() and int(limit) < _UNLIMITED)])


def memory_used(cgroup: Path = _CGROUP) -> int:
    """Return the bytes in use: the control group's where it counts them, else the machine's."""
    for name in ("memory.current", "memory/memory.usage_in_bytes"):
        if (used := _read(cgroup / name)).isdigit():
            return int(used)
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * (int(fields["MemTotal"].split()[0]) - int(fields["MemAvailable"].split()[0]))


def cpu_seconds() -> float:
    """Return the seconds that all CPUs together have worked since boot."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


def disk_free(root: Path) -> int:
    """Return the free bytes where `root` is or will be."""
    return shutil.disk_usage(next(path for path in (root, *root.absolute().parents) if path.exists())).free


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# --- versions --------------------------------------------------------------------------------


def versions_of(python: str) -> dict[str, str]:
    """Return the versions of an interpreter and of the trainers' libraries in it; empty when it takes too long to
    answer.

    Raises ValueError when no trainer could be started with it.
    """
    try:
        asked = subprocess.run([python, "-c", _ASK_VERSIONS, *LIBRARIES], capture_output=True, timeout=60, check=True)
        versions: dict[str, str] = json.loads(asked.stdout)
    except subprocess.TimeoutExpired:
        return {}
    except OSError as error:
        raise ValueError(f"--python {python}: {error.strerror}") from error
    except (subprocess.CalledProcessError, ValueError) as error:
        raise ValueError(f"--python {python}: this is not a Python interpreter that works") from error
    return versions


def commit_of(folder: Path) -> str:
    """Return the git commit of a checkout, or an empty string."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, timeout=10, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()


def _relay_version() -> dict[str, str]:
    return {"relay": own} if (own := version()) else {}


# --- GPUs ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """Return the driver's library, or None where no GPU can be read."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _gpus(nvml: Any) -> Iterator[Gpu]:
    for index, handle in _handles(nvml):
        uuid, model = (_text(ask(handle)) for ask in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
        yield Gpu(index, uuid, model, int(nvml.nvmlDeviceGetMemoryInfo(handle).total))


def _gpu_readings(nvml: Any) -> Iterator[GpuReading]:
    for index, handle in _handles(nvml):
        try:
            yield GpuReading(
                index,
                nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
                int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            )
        except nvml.NVMLError:  # it fell off the bus, or cannot say (MIG): the others can
            continue


def _handles(nvml: Any) -> Iterator[tuple[int, Any]]:
    try:
        count = nvml.nvmlDeviceGetCount() if nvml else 0
    except nvml.NVMLError:  # the driver died under us
        return
    for index in range(count):
        try:
            yield index, nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError:
            continue


def _driver_versions(nvml: Any) -> dict[str, str]:
    if nvml is None:
        return {}
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    return {"driver": _text(nvml.nvmlSystemGetDriverVersion()), "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}"}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
