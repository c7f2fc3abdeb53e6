"""The Python client: typed, async, public. `relayctl` itself has no other.

    async with RelayClient.connect("127.0.0.1:7070") as relay:
        response = await relay.create_run({"version": "relay/v1", "method": "command", "command": ["true"]})
        async for update in relay.watch(response.run.name):
            ...

Messages are the contract's own (`relay.v1`). Refusals are `relay.errors.RelayError`; a coordinator that does not
answer is `Unreachable`. Runs may be named `sums` or `runs/sums`.
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
from relayctl.client.artifacts import Artifacts
from relayctl.client.channel import Line, Trial

ENDED = frozenset({pb.Run.SUCCEEDED, pb.Run.FAILED, pb.Run.CANCELLED})
UNENDED = frozenset({pb.Run.QUEUED, pb.Run.RUNNING, pb.Run.PAUSED})


def run_name(run: str) -> str:
    """`sums` or `runs/sums` as the resource's name."""
    return run if run.startswith("runs/") else f"runs/{run}"


def short(name: str) -> str:
    """The last part of a resource's name: what people type."""
    return name.rpartition("/")[2]


class RelayClient:
    """One coordinator, or several replicas behind one address."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.artifacts = Artifacts(line)
        self._runs = runs_pb2_grpc.RunsStub(line.channel)
        self._fleet = fleet_pb2_grpc.FleetStub(line.channel)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, address: str, secret: str | None = None, *, first: float = 2.0, patience: float = 20.0
    ) -> AsyncIterator[RelayClient]:
        """A client on a connection of its own; the secret is RELAY_SHARED_SECRET's when none is given."""
        held = os.environ.get("RELAY_SHARED_SECRET", "") if secret is None else secret
        line = Line(address, held, first=first, patience=patience)
        try:
            yield cls(line)
        finally:
            await line.close()

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
        """Submits a run; a retry after a lost reply never makes a second one, since the request carries its own id."""
        request = pb.CreateRunRequest(
            run_id=run_id,
            request_id=request_id or str(uuid.uuid4()),
            spec=as_struct(spec),
            inputs=list(inputs),
            provenance=provenance,
            resume=resume,
            validate_only=validate_only,
        )
        return await self.line.call(self._runs.CreateRun, request, seconds=30.0)

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
        """Makes a training that ran elsewhere a run, which rests; the same again is that run."""
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
        return await self.line.call(self._runs.ImportRun, request, seconds=300.0)

    async def run(self, run: str) -> pb.Run:
        """One run; RunUnknown when there is none."""
        return await self.line.call(self._runs.GetRun, pb.GetRunRequest(name=run_name(run)))

    async def runs(
        self,
        *,
        states: Iterable[pb.Run.State.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        limit: int | None = None,
    ) -> list[pb.Run]:
        """Runs, newest first, without their specs; all of them unless limited."""
        since = timestamp_pb2.Timestamp()
        if created_after is not None:
            since.FromDatetime(created_after)
        request = pb.ListRunsRequest(states=list(states), labels=dict(labels or {}), created_after=since)
        if created_after is None:
            request.ClearField("created_after")
        found: list[pb.Run] = []
        while limit is None or len(found) < limit:
            request.page_size = 200 if limit is None else min(limit - len(found), 200)
            page = await self.line.call(self._runs.ListRuns, request)
            found += page.runs
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    async def cancel(self, run: str, reason: str = "") -> pb.Run:
        """Wishes that the run end; its trainer saves first."""
        return await self.line.call(self._runs.CancelRun, pb.CancelRunRequest(name=run_name(run), reason=reason))

    async def pause(self, run: str, reason: str = "") -> pb.Run:
        """Wishes that the run rest with its newest checkpoint."""
        return await self.line.call(self._runs.PauseRun, pb.PauseRunRequest(name=run_name(run), reason=reason))

    async def resume(self, run: str) -> pb.Run:
        """Takes a pause back."""
        return await self.line.call(self._runs.ResumeRun, pb.ResumeRunRequest(name=run_name(run)))

    async def watch(self, run: str, after: int = 0) -> AsyncIterator[pb.WatchRunResponse]:
        """What happens to a run, each event once and in order, across coordinators, until the run ends."""
        seen, trial = after, Trial(self.line)

        def start() -> AsyncIterable[pb.WatchRunResponse]:
            request = pb.WatchRunRequest(name=run_name(run), after_sequence=seen)
            call: AsyncIterable[pb.WatchRunResponse] = self._runs.WatchRun(request, metadata=self.line.metadata)
            return call

        while True:
            async for update in self.line.resumed(start):
                if update.HasField("event"):
                    seen, trial = update.event.sequence, Trial(self.line)
                yield update
            if (await self.run(run)).state in ENDED:
                return
            await trial.waited("the stream ended before the run did")

    async def attempts(self, run: str) -> Sequence[pb.Attempt]:
        """The attempts made at a run, oldest first."""
        request = pb.ListAttemptsRequest(name=run_name(run))
        return (await self.line.call(self._runs.ListAttempts, request)).attempts

    async def checkpoints(
        self, run: str, *, include_superseded: bool = False, include_removed: bool = False
    ) -> Sequence[pb.Checkpoint]:
        """The checkpoints of a run in the order (attempt, step), each with why it stays, or will go."""
        request = pb.ListCheckpointsRequest(
            name=run_name(run), include_superseded=include_superseded, include_removed=include_removed
        )
        return (await self.line.call(self._runs.ListCheckpoints, request)).checkpoints

    async def pin(self, checkpoint: str, reason: str = "") -> pb.Checkpoint:
        """Wishes that a checkpoint (by its full name) stay, whatever the run file says."""
        return await self.line.call(self._runs.PinCheckpoint, pb.PinCheckpointRequest(name=checkpoint, reason=reason))

    async def unpin(self, checkpoint: str) -> pb.Checkpoint:
        """Takes a pin back."""
        return await self.line.call(self._runs.UnpinCheckpoint, pb.UnpinCheckpointRequest(name=checkpoint))

    async def add_copy(self, checkpoint: str, node: int, manifest_digest: str, copy: pb.Copy) -> pb.Checkpoint:
        """Says where a verified copy of a node's part lies now; harmless when that is known."""
        request = pb.RunsAddCopyRequest(name=checkpoint, node=node, manifest_digest=manifest_digest, copy=copy)
        return await self.line.call(self._runs.AddCopy, request)

    async def metrics(
        self, run: str, metrics: Iterable[str] = (), *, include_superseded: bool = False
    ) -> list[pb.ReadMetricsResponse]:
        """The stretches of a run's curve, in the order of arrival."""
        request = pb.ReadMetricsRequest(
            name=run_name(run), metrics=list(metrics), include_superseded=include_superseded
        )

        async def whole() -> list[pb.ReadMetricsResponse]:
            return [stretch async for stretch in self._runs.ReadMetrics(request, metadata=self.line.metadata)]

        return await self.line.retried(whole)

    async def samples(
        self, run: str, *, kind: str = "", step: int | None = None, last_steps: int = 0
    ) -> list[pb.Sample]:
        """What the model said at a step, or at the newest so many steps that have samples; 0 for all."""
        request = pb.ReadSamplesRequest(name=run_name(run), kind=kind, last_steps=0 if step is not None else last_steps)
        if step is not None:
            request.from_step = request.to_step = step

        async def whole() -> list[pb.Sample]:
            replies = self._runs.ReadSamples(request, metadata=self.line.metadata)
            return [sample async for reply in replies for sample in reply.samples]

        return await self.line.retried(whole)

    async def logs(
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
        """What was printed, each byte once, also when the line breaks; `since` in seconds before now."""
        request = pb.ReadLogsRequest(
            name=run_name(run),
            attempt=attempt,
            node=node,
            sources=list(sources),
            since=_seconds(since),
            tail_lines=tail_lines,
            follow=follow,
        )
        taken: dict[tuple[int, int, str], int] = {}
        opened: list[datetime] = []  # when the first piece of all arrived

        def start() -> AsyncIterable[pb.ReadLogsResponse]:
            if opened:  # again: all of it, of which what was taken or came before is passed over
                request.tail_lines = 0
            call: AsyncIterable[pb.ReadLogsResponse] = self._runs.ReadLogs(request, metadata=self.line.metadata)
            return call

        async for piece in self.line.resumed(start):
            source, arrived = (piece.attempt, piece.node, piece.source), piece.time.ToDatetime()
            fresh = max(taken.get(source, 0) - piece.offset, 0)
            too_old = request.tail_lines != tail_lines and source not in taken and arrived < opened[0]
            if fresh >= len(piece.data) or too_old:
                continue
            opened = opened or [arrived]
            taken[source] = piece.offset + len(piece.data)
            yield pb.ReadLogsResponse(
                attempt=piece.attempt,
                node=piece.node,
                source=piece.source,
                offset=piece.offset + fresh,
                data=piece.data[fresh:],
                time=piece.time,
            )

    async def agents(self, labels: Mapping[str, str] | None = None) -> Sequence[fleet_pb2.Agent]:
        """The hosts, by name."""
        request = fleet_pb2.ListAgentsRequest(labels=dict(labels or {}))
        return (await self.line.call(self._fleet.ListAgents, request)).agents

    async def deployment(self) -> fleet_pb2.Deployment:
        """Which deployment answers."""
        return await self.line.call(self._fleet.GetDeployment, fleet_pb2.GetDeploymentRequest())


def as_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain values as protobuf's Struct, in which every number is a double."""
    struct = struct_pb2.Struct()
    struct.update(dict(values))
    return struct


def _seconds(value: float | None) -> duration_pb2.Duration | None:
    if value is None:
        return None
    return duration_pb2.Duration(seconds=int(value), nanos=int((value % 1) * 1e9))
