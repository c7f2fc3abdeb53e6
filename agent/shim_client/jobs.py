"""What the agent and a shim say to each other, as values: the job, who runs it, how it ended, what went wrong."""

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
    """Nobody answers there any more: the shim has ended or was killed."""


class ShimUnresponsive(ShimError):
    """It is there and does not answer: frozen, or starved. Its own deadline still holds."""


class ShimRefused(ShimError):
    """It answered no, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a shim is to run. Times are seconds; `trust` is a moment on CLOCK_BOOTTIME."""

    lease: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]  #: the whole of it: nothing is inherited
    folder: Path  #: the attempt's, which exists: logs, shim.json and exit.json go there
    policy: Literal["continue", "stop"] = "continue"
    trust: float | None = None  #: needed under `stop`
    grace: float = 60.0  #: for stops nobody asked for: no agent, or SIGTERM to the shim
    orphan_limit: float = 3600.0
    dump_signal: int | None = None  #: sent on `dump` to processes that catch it; for faulthandler

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cwd": str(self.cwd), "folder": str(self.folder), "env": dict(self.env)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who a shim keeps: what `shim.json` says."""

    shim: str
    lease: str
    folder: str
    policy: str
    boot_id: str
    started: float
    pid: int | None  #: of the trainer; None when it could not be started
    start_time: int | None  #: of the trainer, in clock ticks since boot
    shim_pid: int | None = None  #: of the shim itself

    @property
    def rebooted(self) -> bool:
        """The host has booted since: nothing of it can live."""
        return self.boot_id != boot_id()

    def names(self, candidate: Process) -> bool:
        return (candidate.pid, candidate.start_time) == (self.pid, self.start_time) and not self.rebooted


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a trainer ended, all of its tree being gone. Times are seconds since the epoch unless they say otherwise."""

    lease: str
    code: int | None = None  #: None when a signal ended it, or nobody saw it end
    signal: int | None = None
    error: str | None = None  #: why it could not be started (the code is 127 then)
    started: float | None = None
    ended: float | None = None
    reaped: float | None = None  #: when the last process of its tree was gone
    stop_reason: str | None = None  #: it was asked to stop
    kill_reason: str | None = None  #: it had to be killed
    kill_began: float | None = None  #: when that was begun, on CLOCK_BOOTTIME
    trust: float | None = None  #: the deadline it had in the end under policy `stop`, on CLOCK_BOOTTIME
    trust_lost: bool = False  #: killed by its deadline, under policy `stop`
    lost: bool = False  #: the shim was killed or the host rebooted: nobody saw the trainer end

    @property
    def succeeded(self) -> bool:
        """It ended by itself with code 0, as far as anyone asked."""
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
    """A dataclass from JSON; a newer shim may say more than we know."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in shown.items() if name in names})
