"""What heartbeats say of the host's load: read now and then in a thread, since a disk or a driver may hang."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Never

from agent import wire
from agent.capability import Meter
from relay.v1 import fleet_pb2

PERIOD = 10.0  #: seconds between two readings


class Vitals:
    """The newest readings of this host."""

    def __init__(self, root: Path) -> None:
        self._meter = Meter(root)
        self.latest = fleet_pb2.Readings()

    async def run(self) -> Never:
        """Until cancelled."""
        while True:
            self.latest = wire.readings(await asyncio.to_thread(self._meter.read))
            await asyncio.sleep(PERIOD)
