"""`RelayClient`: the methods of the coordinator's Runs and Fleet services, typed and asynchronous.

    async with RelayClient.connect("127.0.0.1:7070") as relay:
        response = await relay.create_run({"version": "relay/v1", "method": "command", "command": ["true"]})
        async for update in relay.watch_run(response.run.name):
            ...

Messages are those of the contract (`relay.v1`). A method raises `relay.errors.RelayError` when the coordinator refuses
and `CoordinatorUnreachable` when it does not answer; streams resume by themselves after a broken connection. A run may
be named `sums` or `runs/sums`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2

from relay.v1 import fleet_pb2, fleet_pb2_grpc, runs_pb2_grpc
from relay.v1 import runs_pb2 as pb
from relayctl.client.artifacts import ArtifactsClient
from relayctl.client.channel import CoordinatorChannel, Retries

#: The states of runs that have ended, and of runs that have not.
ENDED = frozenset({pb.Run.SUCCEEDED, pb.Run.FAILED, pb.Run.CANCELLED})
UNENDED = frozenset({pb.Run.QUEUED, pb.Run.RUNNING, pb.Run.PAUSED})


def qualify_name(run: str) -> str:
    """Return the resource name of a run, which may be given as `sums` or `runs/sums`."""
    return run if run.startswith("runs/") else f"runs/{run}"


def shorten_name(name: str) -> str:
    """Return the last part of a resource name, which is what users type: `sums` of `runs/sums`."""
    return name.rpartition("/")[2]


class RelayClient:
    """A client of one coordinator, or of several replicas behind one address."""

    def __init__(self, channel: CoordinatorChannel) -> None:
        self.channel = channel
        self.artifacts = ArtifactsClient(channel)
        self._runs = runs_pb2_grpc.RunsStub(channel.grpc_channel)
        self._fleet = fleet_pb2_grpc.FleetStub(channel.grpc_channel)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, address: str, secret: str | None = None, *, connect_timeout: float = 2.0, retry_timeout: float = 20.0
    ) -> AsyncIterator[RelayClient]:
        """Open a client with a channel of its own; without a secret it sends the one in RELAY_SHARED_SECRET.

        Calls are retried for `connect_timeout` seconds until the coordinator has answered once, and after that for
        `retry_timeout` seconds.
        """
        sent_secret = os.environ.get("RELAY_SHARED_SECRET", "") if secret is None else secret
        channel = CoordinatorChannel(address, sent_secret, connect_timeout=connect_timeout, retry_timeout=retry_timeout)
        try:
            yield cls(channel)
        finally:
            await channel.close()

    async def create_run(
        self,
        spec: Mapping[str, Any],
        *,
        inputs: Iterable[pb.Input] = (),
        provenance: pb.Provenance | None = None,
        run_id: str = "",
        request_id: str | None = None,
        resume: bool = False,
        validate_only: bool = False,
    ) -> pb.CreateRunResponse:
        """Create a run; a retry after a lost reply never creates a second one, since the request carries an id."""
        request = pb.CreateRunRequest(
            run_id=run_id,
            request_id=request_id or str(uuid.uuid4()),
            spec=as_struct(spec),
            inputs=list(inputs),
            provenance=provenance,
            resume=resume,
            validate_only=validate_only,
        )
        return await self.channel.call(self._runs.CreateRun, request, seconds=30.0)

    async def import_run(
        self,
        spec: Mapping[str, Any],
        checkpoints: Iterable[pb.ImportedCheckpoint],
        *,
        inputs: Iterable[pb.Input] = (),
        provenance: pb.Provenance | None = None,
        curve_digest: str = "",
        origin: str = "",
        validate_only: bool = False,
    ) -> pb.ImportRunResponse:
        """Create a paused run of a training that ran elsewhere; the same import again returns that run."""
        request = pb.ImportRunRequest(
            request_id=str(uuid.uuid4()),
            spec=as_struct(spec),
            inputs=list(inputs),
            provenance=provenance,
            checkpoints=list(checkpoints),
            curve_digest=curve_digest,
            origin=origin,
            validate_only=validate_only,
        )
        return await self.channel.call(self._runs.ImportRun, request, seconds=300.0)

    async def get_run(self, run: str) -> pb.Run:
        """Return one run; raises RunUnknown when there is none of this name."""
        return await self.channel.call(self._runs.GetRun, pb.GetRunRequest(name=qualify_name(run)))

    async def list_runs(
        self,
        *,
        states: Iterable[pb.Run.State.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        limit: int | None = None,
    ) -> list[pb.Run]:
        """Return runs without their specs, newest first; all that match unless `limit` is given."""
        since = timestamp_pb2.Timestamp()
        if created_after is not None:
            since.FromDatetime(created_after)
        request = pb.ListRunsRequest(states=list(states), labels=dict(labels or {}), created_after=since)
        if created_after is None:
            request.ClearField("created_after")
        runs: list[pb.Run] = []
        while limit is None or len(runs) < limit:
            request.page_size = 200 if limit is None else min(limit - len(runs), 200)
            page = await self.channel.call(self._runs.ListRuns, request)
            runs += page.runs
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return runs

    async def cancel_run(self, run: str, reason: str = "") -> pb.Run:
        """Cancel a run; its trainer saves a checkpoint first."""
        return await self.channel.call(self._runs.CancelRun, pb.CancelRunRequest(name=qualify_name(run), reason=reason))

    async def pause_run(self, run: str, reason: str = "") -> pb.Run:
        """Pause a run at its newest checkpoint; its trainer saves one first."""
        return await self.channel.call(self._runs.PauseRun, pb.PauseRunRequest(name=qualify_name(run), reason=reason))

    async def resume_run(self, run: str) -> pb.Run:
        """Resume a paused run."""
        return await self.channel.call(self._runs.ResumeRun, pb.ResumeRunRequest(name=qualify_name(run)))

    async def watch_run(self, run: str, after: int = 0) -> AsyncIterator[pb.WatchRunResponse]:
        """Yield a run's events, each once and in order, and its progress, until the run ends."""
        seen, retries = after, Retries(self.channel)

        def open_stream() -> AsyncIterable[pb.WatchRunResponse]:
            request = pb.WatchRunRequest(name=qualify_name(run), after_sequence=seen)
            call: AsyncIterable[pb.WatchRunResponse] = self._runs.WatchRun(request, metadata=self.channel.metadata)
            return call

        while True:
            async for update in self.channel.resume_stream(open_stream):
                if update.HasField("event"):
                    seen, retries = update.event.sequence, Retries(self.channel)
                yield update
            if (await self.get_run(run)).state in ENDED:
                return
            await retries.wait("the stream ended before the run did")

    async def list_attempts(self, run: str) -> Sequence[pb.Attempt]:
        """Return the attempts of a run, oldest first."""
        request = pb.ListAttemptsRequest(name=qualify_name(run))
        return (await self.channel.call(self._runs.ListAttempts, request)).attempts

    async def list_checkpoints(
        self, run: str, *, include_superseded: bool = False, include_removed: bool = False
    ) -> Sequence[pb.Checkpoint]:
        """Return a run's checkpoints by attempt and step, each with why it is kept or will be deleted."""
        request = pb.ListCheckpointsRequest(
            name=qualify_name(run), include_superseded=include_superseded, include_removed=include_removed
        )
        return (await self.channel.call(self._runs.ListCheckpoints, request)).checkpoints

    async def pin_checkpoint(self, checkpoint: str, reason: str = "") -> pb.Checkpoint:
        """Pin a checkpoint (by its full name), so that it is kept whatever the run file says."""
        return await self.channel.call(
            self._runs.PinCheckpoint, pb.PinCheckpointRequest(name=checkpoint, reason=reason)
        )

    async def unpin_checkpoint(self, checkpoint: str) -> pb.Checkpoint:
        """Unpin a checkpoint (by its full name), so that the run file decides again whether it is kept."""
        return await self.channel.call(self._runs.UnpinCheckpoint, pb.UnpinCheckpointRequest(name=checkpoint))

    async def add_copy(self, checkpoint: str, node: int, manifest_digest: str, copy: pb.Copy) -> pb.Checkpoint:
        """Register a verified copy of one node's part of a checkpoint; a copy that is known already is no error."""
        request = pb.RunsAddCopyRequest(name=checkpoint, node=node, manifest_digest=manifest_digest, copy=copy)
        return await self.channel.call(self._runs.AddCopy, request)

    async def read_metrics(
        self, run: str, metrics: Iterable[str] = (), *, include_superseded: bool = False
    ) -> list[pb.ReadMetricsResponse]:
        """Return the segments of a run's metric curves in the order in which they arrived."""
        request = pb.ReadMetricsRequest(
            name=qualify_name(run), metrics=list(metrics), include_superseded=include_superseded
        )

        async def read_all() -> list[pb.ReadMetricsResponse]:
            return [segment async for segment in self._runs.ReadMetrics(request, metadata=self.channel.metadata)]

        return await self.channel.retry(read_all)

    async def read_samples(
        self, run: str, *, kind: str = "", step: int | None = None, last_steps: int = 0
    ) -> list[pb.Sample]:
        """Return the samples of one step, or of the last `last_steps` steps that have any; 0 means all."""
        request = pb.ReadSamplesRequest(
            name=qualify_name(run), kind=kind, last_steps=0 if step is not None else last_steps
        )
        if step is not None:
            request.from_step = request.to_step = step

        async def read_all() -> list[pb.Sample]:
            replies = self._runs.ReadSamples(request, metadata=self.channel.metadata)
            return [sample async for reply in replies for sample in reply.samples]

        return await self.channel.retry(read_all)

    async def read_logs(
        self,
        run: str,
        *,
        attempt: int = 0,
        node: int | None = None,
        since: float | None = None,
        tail_lines: int = 0,
        follow: bool = False,
        sources: Iterable[str] = (),
    ) -> AsyncIterator[pb.ReadLogsResponse]:
        """Yield what the trainer printed, each byte once even if connections break; `since` is in seconds."""
        request = pb.ReadLogsRequest(
            name=qualify_name(run),
            attempt=attempt,
            node=node,
            sources=list(sources),
            since=_as_duration(since),
            tail_lines=tail_lines,
            follow=follow,
        )
        next_offsets: dict[tuple[int, int, str], int] = {}  # of each source
        first_time: datetime | None = None  # when the first piece of all arrived at the coordinator

        def open_stream() -> AsyncIterable[pb.ReadLogsResponse]:
            if first_time is not None:  # it broke: read everything again, and skip what was yielded or is older
                request.tail_lines = 0
            call: AsyncIterable[pb.ReadLogsResponse] = self._runs.ReadLogs(request, metadata=self.channel.metadata)
            return call

        async for piece in self.channel.resume_stream(open_stream):
            source, arrived = (piece.attempt, piece.node, piece.source), piece.time.ToDatetime()
            skipped = max(next_offsets.get(source, 0) - piece.offset, 0)
            reading_again = request.tail_lines != tail_lines
            too_old = reading_again and source not in next_offsets and first_time is not None and arrived < first_time
            if skipped >= len(piece.data) or too_old:
                continue
            first_time = first_time or arrived
            next_offsets[source] = piece.offset + len(piece.data)
            yield pb.ReadLogsResponse(
                attempt=piece.attempt,
                node=piece.node,
                source=piece.source,
                offset=piece.offset + skipped,
                data=piece.data[skipped:],
                time=piece.time,
            )

    async def list_agents(self, labels: Mapping[str, str] | None = None) -> Sequence[fleet_pb2.Agent]:
        """Return the agents in the order of their names, optionally only those with all of these labels."""
        request = fleet_pb2.ListAgentsRequest(labels=dict(labels or {}))
        return (await self.channel.call(self._fleet.ListAgents, request)).agents

    async def get_deployment(self) -> fleet_pb2.Deployment:
        """Return the deployment that the coordinator belongs to."""
        return await self.channel.call(self._fleet.GetDeployment, fleet_pb2.GetDeploymentRequest())


def as_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Convert plain values to a protobuf Struct, in which every number is a double."""
    struct = struct_pb2.Struct()
    struct.update(dict(values))
    return struct


def _as_duration(value: float | None) -> duration_pb2.Duration | None:
    if value is None:
        return None
    return duration_pb2.Duration(seconds=int(value), nanos=int((value % 1) * 1e9))
