"""What an attempt's end means for its run: success, a stop, or a failure with its cause. Pure.

A cause is a word that programs can act on and a sentence that people can read. The word is what `ErrorInfo` carries:
CONFIG_INVALID, CUDA_OOM, OOM_KILLED, DISK_FULL, STALLED, START_FAILED, SIGNAL, EXIT_CODE; SHIM_LOST, and a start that
failed for want of the host's means, is infrastructure's fault, all others are the run's own.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import signal
from dataclasses import dataclass

from agent.shim_client.jobs import Exit

SAVED = 128 + signal.SIGTERM  #: a trainer of ours exits so after it was asked to stop and has saved
CONFIG = 78  #: sysexits' EX_CONFIG: what the trainer was given is wrong, and will be the next time
LAST_LINES = 40  #: of stderr, kept with a failure
LAST_BYTES = 16 * 1024

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
)  #: what a host lacks, and another may have
_TELLING = (
    (
        "CUDA_OOM",
        re.compile(r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
    ),
    ("DISK_FULL", re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded")),
)


class StopCause(enum.IntEnum):
    """Why a trainer was stopped, in the contract's numbers; a blunter reason never replaces a sharper one."""

    REQUESTED = 1
    LEAVING = 2
    TRUST_LOST = 3


@dataclass(frozen=True, slots=True)
class StopDirective:
    """A stop that was asked for; `grace` seconds to save, none to be killed at once."""

    cause: StopCause
    grace: float
    why: str

    def strengthen(self, other: StopDirective | None) -> StopDirective:
        """This order, or an earlier one made shorter: what was asked first stays the cause."""
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
    permanent: bool = False  #: trying again cannot help
    infrastructure: bool = False  #: not the run's own fault
    last_lines: str = ""


class Success:
    """Trained to the end."""


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
    """What to report. A command that ends after it was asked to stop has stopped, whatever it exits with.

    A trainer of ours says which it was: 0 when it had trained to the end anyway, 143 when it stopped.
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
    """The cause of an exit that is neither a success nor a stop that was wished.

    `stderr` is the end of what the trainer printed there, `oom_kills` how many processes the kernel killed for memory
    meanwhile, `disk_full` that what it had to say may have found no room, `stalled` why the agent had it killed.
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
    """The program is not there, or is none, and will not be the next time; unless the host lacked what it takes."""
    permanent = not any(os.strerror(number) in error for number in _NO_MEANS)
    text = f"the trainer could not be started: {error}"
    return FailureCause("START_FAILED", text, permanent=permanent, infrastructure=not permanent)


def last_lines(text: str) -> str:
    """The last lines of a program's output, bounded, with progress bars' overwritten lines left out."""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").rstrip().split("\n")]
    return "\n".join(lines[-LAST_LINES:])[-LAST_BYTES:]


def _pick_line(stderr: str, otherwise: str, telling: re.Pattern[str] | None = None) -> str:
    """The line that says most: the last one that tells, else the last one that is not empty."""
    lines = [line.strip() for line in last_lines(stderr).split("\n") if line.strip()]
    wanted = [line for line in lines if telling.search(line)] if telling else lines
    return wanted[-1][:500] if wanted else otherwise


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
