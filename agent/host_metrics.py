"""The host's load for heartbeats, read from time to time in a thread, since a disk or a driver may hang."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Never

from agent import wire
from agent.capability import Meter
from relay.logs import get_logger
from relay.v1 import fleet_pb2

log = get_logger(__name__)

PERIOD = 10.0  #: seconds between two readings


class HostMetrics:
    """The newest readings of this host."""

    def __init__(self, root: Path) -> None:
        self._meter = Meter(root)
        self.latest = fleet_pb2.Readings()

    async def run(self) -> Never:
        """Read every PERIOD seconds until cancelled."""
        while True:
            try:
                self.latest = wire.render_readings(await asyncio.to_thread(self._meter.read))
            except OSError as error:  # a volume or a driver that fails: what was read last has to do
                log.warning("host metrics not read", reason=error)
            await asyncio.sleep(PERIOD)
