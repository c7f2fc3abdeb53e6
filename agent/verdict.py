"""What an attempt's end means for its run: success, a stop, or a failure with its cause. Pure."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from agent.causes import Cause, cause_of
from agent.jobs import Exit

SAVED = 128 + signal.SIGTERM  #: a trainer of ours exits so after it was asked to stop and has saved


class Stop(enum.IntEnum):
    """Why a trainer was stopped, in the contract's numbers; a blunter reason never replaces a sharper one."""

    WISHED = 1
    LEAVING = 2
    TRUST_LOST = 3


@dataclass(frozen=True, slots=True)
class Order:
    """A stop that was asked for; `grace` seconds to save, none to be killed at once."""

    cause: Stop
    grace: float
    why: str

    def sharpened(self, other: Order | None) -> Order:
        """This order, or an earlier one made shorter: what was asked first stays the cause."""
        if other is None:
            return self
        return Order(other.cause, min(self.grace, other.grace), self.why if self.grace < other.grace else other.why)


class Success:
    """Trained to the end."""


def verdict(
    ended: Exit, *, order: Order | None, command: bool, stderr: str = "", oom_kills: int = 0, stalled: str = ""
) -> Success | Stop | Cause:
    """What to report. A command that ends after it was asked to stop has stopped, whatever it exits with.

    A trainer of ours says which it was: 0 when it had trained to the end anyway, 143 when it stopped.
    """
    if ended.trust_lost:
        return Stop.TRUST_LOST
    if stalled or ended.lost or ended.error:
        return cause_of(ended, stderr, oom_kills=oom_kills, stalled=stalled)
    asked = order is not None or ended.stop_reason is not None
    if not asked:
        return Success() if ended.succeeded else cause_of(ended, stderr, oom_kills=oom_kills)
    if not command and ended.code is not None and ended.code != SAVED and ended.kill_reason is None:
        return Success() if ended.code == 0 else cause_of(ended, stderr, oom_kills=oom_kills)
    return order.cause if order is not None else Stop.LEAVING
