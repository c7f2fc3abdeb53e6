"""Messages ↔ values: the only module that knows how a session's messages are written."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from agent.capability import Capability, Readings
from agent.folder import write_atomically
from agent.leases import DesiredLease, HeartbeatReply, StopReason
from relay.errors import DOMAIN
from relay.logs import bind, name_fields
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import fleet_pb2
from runfile import RunFile
from storage.base import FolderKey

INTERNAL = 13  #: google.rpc.Code of failures that are data, not of RPCs


def parse_heartbeat_reply(message: pb.HeartbeatReply) -> HeartbeatReply:
    """Return the desired state that a heartbeat reply carries."""
    desired = {lease.lease: _parse_desired_lease(lease) for lease in message.leases}
    return HeartbeatReply(message.session_id, message.desired_version, message.heartbeat_sequence, desired)


def _parse_desired_lease(message: pb.DesiredLease) -> DesiredLease:
    return DesiredLease(
        run=message.action == pb.DesiredLease.RUN,
        reason=StopReason(
            min(int(message.reason), max(StopReason))
        ),  # a reason that this agent does not know counts as the strongest
        grace=message.grace.ToTimedelta().total_seconds(),
        work=Assignment(message.lease, message.assignment) if message.HasField("assignment") else None,
    )


def parse_timing(message: pb.Welcome) -> LeaseTiming:
    """Return the lease timing that a welcome states; raise ValueError when it cannot work."""
    return LeaseTiming(
        ttl=message.ttl.ToTimedelta().total_seconds(),
        heartbeat=message.heartbeat_interval.ToTimedelta().total_seconds(),
        rho=message.clock_rate_error,
        kill=message.kill_time.ToTimedelta().total_seconds(),
        margin=message.margin.ToTimedelta().total_seconds(),
    )


def make_failure(reason: str, message: str, **metadata: str) -> status_pb2.Status:
    """Return what went wrong with a run as data: a google.rpc.Status with one ErrorInfo."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    return status_pb2.Status(code=INTERNAL, message=message, details=[packed])


def render_capability(found: Capability, slots: int) -> fleet_pb2.Capability:
    """Return the message of a host's capability; `slots` is how many runs it takes at once where it has no GPUs."""
    return fleet_pb2.Capability(
        hostname=found.hostname,
        cpus=found.cpus,
        memory_bytes=found.memory,
        disk_bytes=found.disk_free,
        gpus=[
            fleet_pb2.Gpu(index=gpu.index, uuid=gpu.uuid, model=gpu.model, memory_bytes=gpu.memory)
            for gpu in found.gpus
        ],
        slots=slots,
        versions=found.versions,
        commit=found.commit,
        platform=found.platform,
    )


def render_readings(read: Readings) -> fleet_pb2.Readings:
    """Return the message that says how loaded the host is."""
    return fleet_pb2.Readings(
        cpu_fraction=read.cpu,
        memory_used_bytes=read.memory_used,
        disk_free_bytes=read.disk_free,
        gpus=[
            fleet_pb2.GpuReading(
                index=gpu.index, fraction=gpu.use, memory_used_bytes=gpu.memory_used, temperature=gpu.temperature
            )
            for gpu in read.gpus
        ],
    )


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that this host needs to run its place of one lease; the attempt's folder keeps it for a restarted agent."""

    lease: str  #: `runs/{run}/leases/{lease}`
    message: pb.Assignment

    @property
    def run_id(self) -> str:
        return self.message.run.removeprefix("runs/")

    @property
    def lease_id(self) -> str:
        return self.lease.rpartition("/")[2]

    @property
    def attempt(self) -> int:
        return self.message.attempt

    @property
    def node(self) -> int:
        return self.message.node

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(self.message.slots)

    @property
    def stops_on_disconnect(self) -> bool:
        return self.message.on_disconnect == pb.STOP

    def bind_logs(self) -> AbstractContextManager[None]:
        """Bind run, lease and attempt to every line that is logged inside the block."""
        return bind(**name_fields(self.lease), attempt=self.attempt)

    def run_file(self) -> RunFile:
        """Return the run file; raise ValueError when this agent is too old to read it."""
        return RunFile.model_validate_json(self.message.spec_json)

    def place(self, run: RunFile, step: int | None) -> FolderKey:
        """Return where a store keeps this node's part of a checkpoint, or (without a step) the run's result."""
        return FolderKey(
            run=self.run_id,
            framework=run.framework,
            attempt=self.attempt,
            lease=self.lease_id,
            step=step,
            node=self.node,
            nodes=max(1, len(self.message.places)),
        )

    def save(self, path: Path) -> None:
        """Write it to `path`, for an agent that is started after this one."""
        held = pb.DesiredLease(lease=self.lease, assignment=self.message)
        write_atomically(path, held.SerializeToString())

    @classmethod
    def load(cls, path: Path) -> Assignment:
        """Read what `save` wrote; raise ValueError or OSError when it cannot be read."""
        held = pb.DesiredLease()
        try:
            held.ParseFromString(path.read_bytes())
        except DecodeError as error:
            raise ValueError(f"{path}: {error}") from error
        return cls(held.lease, held.assignment)
