"""When a trainer is asked to stop and when it is killed: the rules of the shim, without its processes.

Times are seconds on CLOCK_BOOTTIME and are passed in.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs milliseconds that every run would wait for
    from collections.abc import Mapping
    from typing import Any


class KillDeadlines:
    """When the trainer is asked to stop and when it is killed. Pure: times are passed in."""

    def __init__(self, job: Mapping[str, Any], now: float) -> None:
        if job["policy"] == "stop" and job.get("trust") is None:
            raise ValueError("policy `stop` needs `trust`, a moment on CLOCK_BOOTTIME")
        self.trust: float | None = job.get("trust") if job["policy"] == "stop" else None
        self.stop_reason: str | None = None
        self.kill_reason: str | None = None
        self.kill_at: float | None = None
        self.kill_began: float | None = None
        self.trust_lost = False
        self._grace = float(job["grace"])
        self._orphan_limit = float(job["orphan_limit"])
        self._contact = now

    def contact(self, now: float) -> None:
        """Note a request of the agent, which shows that the shim is no orphan."""
        self._contact = now

    def renew(self, deadline: float) -> bool:
        """Extend trust until `deadline`, never to less than before; return False when the kill has begun."""
        if self.kill_reason is None and self.trust is not None:
            self.trust = max(self.trust, deadline)
        return self.kill_reason is None

    def stop(self, now: float, grace: float, reason: str) -> bool:
        """Kill after `grace` seconds, or sooner if that was requested before; return True the first time."""
        first = self.stop_reason is None
        self.stop_reason = self.stop_reason or reason
        self.kill_by(now + max(0.0, grace))
        return first

    def kill_by(self, moment: float) -> None:
        self.kill_at = moment if self.kill_at is None else min(self.kill_at, moment)

    def kill(self, now: float, reason: str) -> None:
        """Kill now; nothing undoes it."""
        if self.kill_reason is None:
            self.kill_reason, self.kill_began = reason, now

    def may_start(self, now: float) -> bool:
        """Return False when the host slept during the start: an old promise starts nothing (S3)."""
        self.pass_time(now)
        return not self.trust_lost

    def pass_time(self, now: float) -> bool:
        """Carry out what is due at `now`, and return True when the trainer must be asked to stop."""
        if self.kill_reason is not None:
            return False
        if self.trust is not None and now >= self.trust:
            self.trust_lost = True
            self.kill(now, "trust lapsed")
        elif self.kill_at is not None and now >= self.kill_at:
            self.kill(now, "grace over")
        elif self.stop_reason is None and now >= self.orphaned_at:
            return self.stop(now, self._grace, "no agent")
        return False

    @property
    def orphaned_at(self) -> float:
        return self._contact + self._orphan_limit

    @property
    def next_moment(self) -> float:
        """The next moment at which `pass_time` has something to do; infinity when there is none."""
        orphaned = () if self.stop_reason else (self.orphaned_at,)
        return min(
            float(moment) for moment in (self.trust, self.kill_at, *orphaned, float("inf")) if moment is not None
        )
