"""The Runs service: what users and pipelines call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from grpc import aio

from coordinator.artifacts.base import Artifacts
from coordinator.artifacts.garbage_collection import require_folder
from coordinator.commands import checkpoints as registry
from coordinator.commands import imports, retention
from coordinator.commands import runs as commands
from coordinator.database.connections import Database
from coordinator.rpc import requests, responses, streams
from coordinator.store import checkpoints, queries
from coordinator.store.queries import RunFilter
from relay.errors import CheckpointUnknown, InvalidRequest
from relay.timing import LeaseTiming
from relay.v1 import runs_pb2 as pb
from relay.v1 import runs_pb2_grpc
from storage.threads import in_thread

PAGE, LARGEST_PAGE = 50, 1000
_NO_HEAD = UUID(int=0)
_Context = aio.ServicerContext[Any, Any]


class RunsService(runs_pb2_grpc.RunsServicer):
    """Serves users and pipelines."""

    def __init__(self, db: Database, artifacts: Artifacts, timing: LeaseTiming) -> None:
        self._db = db
        self._artifacts = artifacts
        self._ttl = timing.ttl

    async def CreateRun(self, request: pb.CreateRunRequest, context: _Context) -> pb.CreateRunResponse:
        done = await commands.create(self._db, self._artifacts, requests.parse_submission(request), self._ttl)
        return pb.CreateRunResponse(
            run=await self._created(request, done),
            created=done.created,
            agents_ready=done.agents_ready,
            placement=done.placement,
        )

    async def ImportRun(self, request: pb.ImportRunRequest, context: _Context) -> pb.ImportRunResponse:
        wanted = requests.parse_import(request)
        done = await imports.create_imported(self._db, self._artifacts, wanted, self._ttl)
        return pb.ImportRunResponse(
            run=await self._created(request, done),
            created=done.created,
            agents_ready=done.agents_ready,
            placement=done.placement,
            steps_to_remove=imports.steps_to_remove(wanted, done.definition.spec),
        )

    async def _created(self, request: pb.CreateRunRequest | pb.ImportRunRequest, done: commands.CreatedRun) -> pb.Run:
        """Return the run, or with `validate_only` what it would be."""
        if request.validate_only:
            return responses.render_planned_run(done.run_id, done.definition)
        return await self._run(done.run_id)

    async def GetRun(self, request: pb.GetRunRequest, context: _Context) -> pb.Run:
        return await self._run(requests.parse_run_id(request.name))

    async def ListRuns(self, request: pb.ListRunsRequest, context: _Context) -> pb.ListRunsResponse:
        if not 0 <= request.page_size <= LARGEST_PAGE:
            raise InvalidRequest(f"page_size must be at most {LARGEST_PAGE}")
        which = RunFilter(
            states=[pb.Run.State.Name(state).lower() for state in request.states if state in pb.Run.State.values()],
            labels=request.labels,
            created_after=requests.parse_time(request.created_after) if request.HasField("created_after") else None,
            after=request.page_token,
            limit=request.page_size or PAGE,
        )
        async with self._db.begin() as connection:
            found, token = await queries.list_runs(connection, which)
        async with self._db.connection() as conn:
            heads = await checkpoints.read_many(conn, [view.run.head_id for view in found if view.run.head_id])
        runs = [responses.render_run(view, heads.get(view.run.head_id or _NO_HEAD), whole=False) for view in found]
        return pb.ListRunsResponse(runs=runs, next_page_token=token)

    async def CancelRun(self, request: pb.CancelRunRequest, context: _Context) -> pb.Run:
        await commands.cancel(self._db, requests.parse_run_id(request.name), requests.parse_reason(request.reason))
        return await self._run(requests.parse_run_id(request.name))

    async def PauseRun(self, request: pb.PauseRunRequest, context: _Context) -> pb.Run:
        await commands.pause(self._db, requests.parse_run_id(request.name), requests.parse_reason(request.reason))
        return await self._run(requests.parse_run_id(request.name))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: _Context) -> pb.Run:
        await commands.resume(self._db, requests.parse_run_id(request.name))
        return await self._run(requests.parse_run_id(request.name))

    def WatchRun(self, request: pb.WatchRunRequest, context: _Context) -> AsyncIterator[pb.WatchRunResponse]:
        return streams.watch_run(self._db, request)

    def ReadMetrics(self, request: pb.ReadMetricsRequest, context: _Context) -> AsyncIterator[pb.ReadMetricsResponse]:
        return streams.read_metrics(self._db, request)

    def ReadSamples(self, request: pb.ReadSamplesRequest, context: _Context) -> AsyncIterator[pb.ReadSamplesResponse]:
        return streams.read_samples(self._db, request)

    def ReadLogs(self, request: pb.ReadLogsRequest, context: _Context) -> AsyncIterator[pb.ReadLogsResponse]:
        return streams.read_logs(self._db, request)

    async def ListAttempts(self, request: pb.ListAttemptsRequest, context: _Context) -> pb.ListAttemptsResponse:
        async with self._db.begin() as connection:
            found = await queries.list_attempts(connection, requests.parse_run_id(request.name))
        return pb.ListAttemptsResponse(attempts=[responses.render_attempt(view) for view in found])

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: _Context
    ) -> pb.ListCheckpointsResponse:
        run_id = requests.parse_run_id(request.name)
        async with self._db.begin() as connection:
            spec = (await queries.read_run(connection, run_id)).run.spec
        async with self._db.connection() as conn:
            found = await checkpoints.list_of_run(
                conn, run_id, superseded=request.include_superseded, removed=request.include_removed
            )
            decision = await retention.preview(conn, run_id, spec)
        return pb.ListCheckpointsResponse(
            checkpoints=[responses.render_checkpoint_with_decision(view, decision) for view in found]
        )

    async def PinCheckpoint(self, request: pb.PinCheckpointRequest, context: _Context) -> pb.Checkpoint:
        return await self._pin(request.name, pinned=True, reason=requests.parse_reason(request.reason))

    async def UnpinCheckpoint(self, request: pb.UnpinCheckpointRequest, context: _Context) -> pb.Checkpoint:
        return await self._pin(request.name, pinned=False)

    async def AddCopy(self, request: pb.RunsAddCopyRequest, context: _Context) -> pb.Checkpoint:
        checkpoint_id, copy = requests.parse_checkpoint_id(request.name), requests.parse_copy(request.copy)
        if copy.store == "host":
            raise InvalidRequest("a copy on a host's disk must be registered by that host")
        if copy.store == "relay":
            if copy.uri != f"relay://{request.manifest_digest}":
                raise InvalidRequest("a copy in relay must be at relay://<manifest_digest>")
            await in_thread(require_folder, self._artifacts, request.manifest_digest)
        run_id = request.name.split("/")[1]
        await registry.add_user_copy(self._db, run_id, checkpoint_id, request.node, request.manifest_digest, copy)
        return await self._checkpoint(checkpoint_id)

    async def _pin(self, name: str, *, pinned: bool, reason: str = "") -> pb.Checkpoint:
        checkpoint_id = requests.parse_checkpoint_id(name)
        await retention.pin(self._db, name.split("/")[1], checkpoint_id, pinned, reason)
        return await self._checkpoint(checkpoint_id)

    async def _checkpoint(self, checkpoint_id: UUID) -> pb.Checkpoint:
        async with self._db.connection() as conn:
            view = await checkpoints.get(conn, checkpoint_id)
        if view is None:
            raise CheckpointUnknown(f"there is no checkpoint {checkpoint_id}")
        return responses.render_checkpoint(view)

    async def _run(self, run_id: str) -> pb.Run:
        async with self._db.begin() as connection:
            view = await queries.read_run(connection, run_id)
        async with self._db.connection() as conn:
            head = await checkpoints.get(conn, view.run.head_id) if view.run.head_id else None
        return responses.render_run(view, head)
