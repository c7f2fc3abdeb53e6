"""The directives of one attempt (a stop, and trust in its lease), and how they reach its shim."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Never

from agent.attempt.exit_classification import StopDirective
from agent.shim_client.shims import Shim, ShimError, ShimUnresponsive
from relay.logs import get_logger

log = get_logger(__name__)


class Directives:
    """A stop that only grows stronger and trust that only grows longer, forwarded at once to the shim (L4, F14)."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is CLOCK_BOOTTIME, which the shim's deadlines are on."""
        self._now = now
        self.stop: StopDirective | None = None
        self.stopped = asyncio.Event()  #: set once there is a stop
        self.hurried = asyncio.Event()  #: set once nothing is waited for any more
        self.trust: float | None = None  #: the moment of CLOCK_BOOTTIME until which the lease is trusted
        self._changed = asyncio.Event()
        self._forwarded_stop: StopDirective | None = None
        self._forwarded_trust: float | None = None

    def strengthen(self, order: StopDirective) -> None:
        """Take a stop in; a repeated stop can only shorten the time that the trainer has."""
        sharpened = order.strengthen(self.stop)
        if sharpened != self.stop:
            log.info("stop requested", reason=order.why, grace=order.grace)
            self.stop = sharpened
            self.stopped.set()
            self._changed.set()

    def extend_trust(self, until: float) -> None:
        """Extend trust in the lease until this moment of CLOCK_BOOTTIME."""
        self.trust = until if self.trust is None else max(self.trust, until)
        self._changed.set()

    async def wait_trusted(self) -> None:
        """Wait until the lease may be trusted."""
        while self.trust is None or self.trust <= self._now():
            self._changed.clear()
            await self._changed.wait()

    async def forward(self, shim: Shim) -> Never:
        """Forward to the shim what it does not know yet, until cancelled."""
        while True:
            self._changed.clear()
            if await self._forward_once(shim):
                await self._changed.wait()

    async def _forward_once(self, shim: Shim) -> bool:
        """Forward once; return False when the shim did not answer, so that it must be tried again."""
        trust, stop = self.trust, self.stop
        try:
            if trust is not None and trust != self._forwarded_trust:
                await shim.trust(trust)
                self._forwarded_trust = trust
            if stop is not None and stop != self._forwarded_stop:
                await (shim.stop(stop.grace, stop.why) if stop.grace > 0 else shim.kill(stop.why))
                self._forwarded_stop = stop  # a sharper one may have come meanwhile
        except ShimUnresponsive as error:
            log.warning("shim does not answer", reason=error)
            return False
        except ShimError as error:  # it has ended; `wait` tells how
            log.info("directive not delivered", reason=error)
        return True
