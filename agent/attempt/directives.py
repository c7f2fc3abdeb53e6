"""What one attempt was told, and what its shim has been told of that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Never

from agent.attempt.exit_classification import StopDirective
from agent.shim_client.shims import Shim, ShimError, ShimSilent

log = logging.getLogger(__name__)


class Directives:
    """A stop, which only sharpens, and trust, which only grows. Passed on at once, whatever else is slow (L4, F14)."""

    def __init__(self, lease: str, now: Callable[[], float]) -> None:
        """`now` is CLOCK_BOOTTIME, which the shim's deadlines are on."""
        self._lease = lease
        self._now = now
        self.stop: StopDirective | None = None
        self.stopped = asyncio.Event()  #: there is a stop
        self.hurried = asyncio.Event()  #: nothing is to be waited for any more
        self.trust: float | None = None  #: until this moment of CLOCK_BOOTTIME
        self._changed = asyncio.Event()
        self._forwarded_stop: StopDirective | None = None
        self._forwarded_trust: float | None = None

    def strengthen(self, order: StopDirective) -> None:
        """Save and end. Said again, it can only come sooner."""
        sharpened = order.strengthen(self.stop)
        if sharpened != self.stop:
            log.info("lease=%s order=stop why=%r grace=%g", self._lease, order.why, order.grace)
            self.stop = sharpened
            self.stopped.set()
            self._changed.set()

    def extend_trust(self, until: float) -> None:
        """The lease may be trusted until then."""
        self.trust = until if self.trust is None else max(self.trust, until)
        self._changed.set()

    async def wait_trusted(self) -> None:
        """Until the lease may be trusted for a while."""
        while self.trust is None or self.trust <= self._now():
            self._changed.clear()
            await self._changed.wait()

    async def forward(self, shim: Shim) -> Never:
        """Tell the shim what it has not been told, until cancelled."""
        while True:
            self._changed.clear()
            if await self._forward_once(shim):
                await self._changed.wait()

    async def _forward_once(self, shim: Shim) -> bool:
        """False when the shim did not answer, and has to be told again."""
        trust, stop = self.trust, self.stop
        try:
            if trust is not None and trust != self._forwarded_trust:
                await shim.trust(trust)
                self._forwarded_trust = trust
            if stop is not None and stop != self._forwarded_stop:
                await (shim.stop(stop.grace, stop.why) if stop.grace > 0 else shim.kill(stop.why))
                self._forwarded_stop = stop  # a sharper one may have come meanwhile
        except ShimSilent as error:
            log.warning("lease=%s shim=silent reason=%r", self._lease, str(error))
            return False
        except ShimError as error:  # it has ended; `wait` tells how
            log.info("lease=%s shim=untold reason=%r", self._lease, str(error))
        return True
