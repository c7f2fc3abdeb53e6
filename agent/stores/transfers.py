"""The uploads that are in progress, for heartbeats."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from relay.v1 import fleet_pb2
from storage.base import Progress


@dataclass(slots=True)
class Transfers:
    """The uploads of all leases of this host."""

    _under_way: dict[int, fleet_pb2.Transfer] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def track(self, lease: str, step: int | None, total: int) -> Iterator[fleet_pb2.Transfer]:
        """Count an upload as in progress inside the block."""
        number, transfer = next(self._numbers), fleet_pb2.Transfer(lease=lease, step=step, total_bytes=total)
        self._under_way[number] = transfer
        try:
            yield transfer
        finally:
            del self._under_way[number]

    def attach_to(self, readings: fleet_pb2.Readings) -> fleet_pb2.Readings:
        """Return a host's readings with the uploads added."""
        told = fleet_pb2.Readings()
        told.CopyFrom(readings)
        told.transfers.extend(self._under_way.values())
        return told


def count_into(transfer: fleet_pb2.Transfer) -> Progress:
    """Return a progress function that counts from the beginning at every try."""
    transfer.done_bytes = 0

    def done(size: int) -> None:
        transfer.done_bytes += size

    return done
