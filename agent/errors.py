"""Failures for which this host, rather than the run, is at fault."""

from __future__ import annotations

import errno
import os


class HostFault(Exception):
    """This host or one of its stores cannot run the attempt; another host might. `reason` is for programs."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def disk_fault(error: OSError) -> HostFault:
    """Turn an error of this host's disk into a fault: DISK_FULL, or HOST_FAULT for any other error."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = f"{error.filename or ''} {os.strerror(error.errno or 0)}".strip()
    return HostFault("DISK_FULL" if full else "HOST_FAULT", text)
