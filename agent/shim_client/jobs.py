"""The messages between the agent and a shim as values: the job, its trainer, how it ended, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from agent.shim.processes import Process, boot_id

T = TypeVar("T")


class ShimError(Exception):
    """A shim did not do what it was asked."""


class ShimGone(ShimError):
    """The shim has ended or was killed."""


class ShimUnresponsive(ShimError):
    """The shim is there and does not answer: it is frozen or starved. Its own deadline still holds."""


class ShimRefused(ShimError):
    """The shim refused the request, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a shim is to run. Times are seconds; `trust` is a moment on CLOCK_BOOTTIME."""

    lease: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]  #: the whole environment: nothing is inherited
    folder: Path  #: the attempt's folder, which exists, for logs, shim.json and exit.json
    policy: Literal["continue", "stop"] = "continue"
    trust: float | None = None  #: required under `stop`
    grace: float = 60.0  #: for stops that the agent did not request: it is gone, or the shim got SIGTERM
    orphan_limit: float = 3600.0
    dump_signal: int | None = None  #: sent on `dump` to processes that catch it; for faulthandler

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cwd": str(self.cwd), "folder": str(self.folder), "env": dict(self.env)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Which trainer a shim supervises: the content of `shim.json`."""

    shim: str
    lease: str
    folder: str
    policy: str
    boot_id: str
    started: float
    pid: int | None  #: pid of the trainer; None when it could not be started
    start_time: int | None  #: start time of the trainer, in clock ticks since boot
    shim_pid: int | None = None  #: pid of the shim itself

    @property
    def rebooted(self) -> bool:
        """Whether the host has booted since, so that nothing of it can live."""
        return self.boot_id != boot_id()

    def names(self, candidate: Process) -> bool:
        return (candidate.pid, candidate.start_time) == (self.pid, self.start_time) and not self.rebooted


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a trainer ended, with no process of its tree left. Times are seconds since the epoch unless noted."""

    lease: str
    code: int | None = None  #: None when a signal ended it, or nobody saw it end
    signal: int | None = None
    error: str | None = None  #: why it could not be started (the code is 127 then)
    started: float | None = None
    ended: float | None = None
    reaped: float | None = None  #: when the last process of its tree was gone
    stop_reason: str | None = None  #: why it was asked to stop, if it was
    kill_reason: str | None = None  #: why it was killed, if it was
    kill_began: float | None = None  #: when the kill began, on CLOCK_BOOTTIME
    trust: float | None = None  #: its last deadline under policy `stop`, on CLOCK_BOOTTIME
    trust_lost: bool = False  #: whether its deadline killed it, under policy `stop`
    lost: bool = False  #: whether nobody saw it end, since the shim was killed or the host rebooted

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself with code 0."""
        return self.code == 0 and self.kill_reason is None and not self.lost


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimStatus:
    """A shim's answer to `status`."""

    phase: Literal["spare", "running", "stopping", "killing", "ended"]
    trust: float | None = None
    trust_lost: bool = False
    stop_reason: str | None = None
    kill_reason: str | None = None


def value_of(kind: type[T], shown: Mapping[str, Any]) -> T:
    """Return a dataclass read from JSON; fields that only a newer shim knows are ignored."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in shown.items() if name in names})
