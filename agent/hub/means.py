"""What every attempt on this host publishes with."""

from __future__ import annotations

from dataclasses import dataclass

from relay.runfile import Hub
from relay.stores.hub.budget import Budget
from relay.stores.hub.worker import Worker
from relay.v1 import runs_pb2_grpc


@dataclass(frozen=True, slots=True)
class HubMeans:
    """`defaults` is for runs that say nothing of the Hub themselves."""

    worker: Worker
    budget: Budget
    runs: runs_pb2_grpc.RunsStub  #: tells a card what other hosts did
    defaults: Hub | None = None
