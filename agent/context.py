"""What every attempt on this host works with: the host's settings, connections, stores, services and clocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.checkpoints.removing import CheckpointRemover
from agent.cleanup import OpenAttempts
from agent.coordinator_client import Contact, Coordinator
from agent.events.spool import Spool
from agent.folder import AttemptFolder, RunFolder
from agent.shim_client.shims import Shims
from agent.stores.blobs import BlobClient
from agent.stores.input_cache import InputCache
from agent.stores.transfers import Transfers
from relay.v1 import agents_pb2_grpc, runs_pb2_grpc
from runfile import HubSection
from storage.base import Store
from storage.hub.store import CommitRateLimit
from storage.hub.worker import HubWorker
from storage.throttling import RateLimit


@dataclass(frozen=True, slots=True)
class HubContext:
    """The parts with which attempts publish to the Hugging Face Hub. Only the worker's processes have the token."""

    worker: HubWorker
    commit_limit: CommitRateLimit
    runs: runs_pb2_grpc.RunsStub  #: reads what a model card says of other hosts
    defaults: HubSection | None = None  #: the `hub` section of runs whose run file has none


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptContext:
    """The parts with which every attempt on this host works; one value for the agent's whole life."""

    agent: str  #: `agents/{agent}`
    root: Path
    runtime_dir: Path
    python: str
    gpus: bool
    orphan_limit: float  #: seconds
    environment: Mapping[str, str]
    stub: agents_pb2_grpc.AgentsStub
    coordinator: Coordinator
    contact: Contact
    spool: Spool
    blobs: BlobClient
    stores: Mapping[str, Store]  #: stores by scheme
    cache: InputCache
    open_attempts: OpenAttempts
    remover: CheckpointRemover
    shims: Shims
    now: Callable[[], float]  #: seconds on CLOCK_BOOTTIME, which also counts while the host sleeps
    wall: Callable[[], float]  #: seconds since the epoch, for timestamps that users read
    hub: HubContext | None = None
    rate_limit: RateLimit = field(default_factory=RateLimit)
    transfers: Transfers = field(default_factory=Transfers)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call to the coordinator."""
        return self.coordinator.metadata

    def run_folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run on this host."""
        return RunFolder(self.root, run_id)

    def attempt_folder(self, lease: str, attempt: int) -> AttemptFolder:
        """Return the folder of any lease's attempt; it does not exist when the lease was another host's."""
        _, run_id, _, lease_id = lease.split("/")
        return self.run_folder(run_id).attempt(attempt, lease_id)
