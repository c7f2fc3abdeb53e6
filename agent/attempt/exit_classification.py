"""What an attempt's end means for its run: success, a stop, or a failure with its cause. Pure.

A cause is a reason, which programs can act on, and a sentence for the user. The reason is what `ErrorInfo` carries:
CONFIG_INVALID, NAN_LOSS, CUDA_OOM, OOM_KILLED, DISK_FULL, STALLED, START_FAILED, SIGNAL, EXIT_CODE. SHIM_LOST, and a
start that failed because the host lacked memory or processes, are the infrastructure's fault; all others are the run's
own.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import signal
from dataclasses import dataclass

from agent.shim_client.jobs import Exit

SAVED = 128 + signal.SIGTERM  #: a trainer of Relay's own exits so after it was asked to stop and has saved
CONFIG = 78  #: sysexits' EX_CONFIG: the trainer's configuration is wrong, and a retry cannot help
LAST_LINES = 40  #: how many lines of stderr are kept with a failure
LAST_BYTES = 16 * 1024

#: Errors of a host that lacks something which another host may have.
_NO_MEANS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
)
_NOT_FINITE = re.compile(r"^not finite: ", re.MULTILINE)  #: a trainer of Relay's own says so
_TELLING = (
    (
        "CUDA_OOM",
        re.compile(r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
    ),
    ("DISK_FULL", re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded")),
)


class StopCause(enum.IntEnum):
    """Why a trainer was stopped, by the contract's numbers; a weaker reason never replaces a stronger one."""

    REQUESTED = 1
    LEAVING = 2
    TRUST_LOST = 3


@dataclass(frozen=True, slots=True)
class StopDirective:
    """A requested stop. The trainer has `grace` seconds to save; with none it is killed at once."""

    cause: StopCause
    grace: float
    why: str

    def strengthen(self, other: StopDirective | None) -> StopDirective:
        """Return this directive, or the earlier one with less time: the first request stays the cause."""
        if other is None:
            return self
        return StopDirective(
            other.cause, min(self.grace, other.grace), self.why if self.grace < other.grace else other.why
        )


@dataclass(frozen=True, slots=True)
class FailureCause:
    """Why an attempt failed."""

    reason: str
    text: str
    permanent: bool = False  #: whether a retry cannot help
    infrastructure: bool = False  #: whether the infrastructure is at fault, not the run
    last_lines: str = ""


class Success:
    """The attempt trained to the end."""


def classify_exit(
    ended: Exit,
    *,
    directive: StopDirective | None,
    command: bool,
    stderr: str = "",
    oom_kills: int = 0,
    disk_full: bool = False,
    stalled: str = "",
) -> Success | StopCause | FailureCause:
    """Return what to report. A command that ends after it was asked to stop counts as stopped, whatever its exit code.

    A trainer of Relay's own says which it was: 0 when it had trained to the end anyway, 143 when it stopped.
    """
    cause = classify_failure(ended, stderr, oom_kills=oom_kills, disk_full=disk_full, stalled=stalled)
    if ended.trust_lost:
        return StopCause.TRUST_LOST
    if stalled or ended.lost or ended.error:
        return cause
    asked = directive is not None or ended.stop_reason is not None
    if not asked:
        return Success() if ended.succeeded else cause
    if not command and ended.code is not None and ended.code != SAVED and ended.kill_reason is None:
        return Success() if ended.code == 0 else cause
    return directive.cause if directive is not None else StopCause.LEAVING


def classify_failure(
    ended: Exit, stderr: str, *, oom_kills: int = 0, disk_full: bool = False, stalled: str = ""
) -> FailureCause:
    """Return the cause of an exit that is neither a success nor a requested stop.

    `stderr` is the end of what the trainer printed there, `oom_kills` how many processes the kernel killed meanwhile
    for want of memory, `disk_full` whether the disk may have had no room for its last output, `stalled` why the agent
    had it killed.
    """
    lines = last_lines(stderr)
    if ended.lost:
        return FailureCause("SHIM_LOST", "the trainer's keeper died or the host was rebooted", infrastructure=True)
    if ended.error:
        return _classify_start_failure(ended.error)
    if stalled:
        return FailureCause("STALLED", stalled, last_lines=lines)
    if ended.code == CONFIG:
        return FailureCause(
            "CONFIG_INVALID", _pick_line(stderr, "the run is wrong as written"), permanent=True, last_lines=lines
        )
    if _NOT_FINITE.search(stderr):
        return FailureCause("NAN_LOSS", _pick_line(stderr, "NAN_LOSS", _NOT_FINITE), permanent=True, last_lines=lines)
    for reason, telling in _TELLING:
        if telling.search(stderr):
            return FailureCause(reason, _pick_line(stderr, reason, telling), last_lines=lines)
    if disk_full:
        return FailureCause("DISK_FULL", "it failed on a full disk, which took its last words", last_lines=lines)
    if ended.signal == signal.SIGKILL and oom_kills:
        return FailureCause("OOM_KILLED", "the kernel killed it: the host is out of memory", last_lines=lines)
    if ended.signal is not None:
        return FailureCause("SIGNAL", f"killed by {_name_signal(ended.signal)}", last_lines=lines)
    return FailureCause(
        "EXIT_CODE", f"exit code {ended.code}: {_pick_line(stderr, 'it said nothing')}", last_lines=lines
    )


def _classify_start_failure(error: str) -> FailureCause:
    """Return the cause of a start that failed: the program is missing or is none, unless the host lacked resources."""
    permanent = not any(os.strerror(number) in error for number in _NO_MEANS)
    text = f"the trainer could not be started: {error}"
    return FailureCause("START_FAILED", text, permanent=permanent, infrastructure=not permanent)


def last_lines(text: str) -> str:
    """Return the last lines of a program's output, bounded, without the overwritten lines of progress bars."""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").rstrip().split("\n")]
    return "\n".join(lines[-LAST_LINES:])[-LAST_BYTES:]


def _pick_line(stderr: str, otherwise: str, telling: re.Pattern[str] | None = None) -> str:
    """Return the line that says most: the last one that names an error, else the last one that is not empty."""
    lines = [line.strip() for line in last_lines(stderr).split("\n") if line.strip()]
    wanted = [line for line in lines if telling.search(line)] if telling else lines
    return wanted[-1][:500] if wanted else otherwise


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
