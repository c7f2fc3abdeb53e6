"""Real gRPC on a port of the kernel's choosing, with services that break off where a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from relay.v1 import runs_pb2 as pb
from relay.v1 import runs_pb2_grpc
from relayctl.client.client import RelayClient


@asynccontextmanager
async def serving(register: Callable[[aio.Server], None], *interceptors: aio.ServerInterceptor) -> AsyncIterator[str]:
    """The address of a server."""
    server = aio.server(interceptors=interceptors)
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@dataclass
class Faults(aio.ServerInterceptor):
    """Ends the next calls with these codes, as a proxy does when the backend behind it is dead."""

    codes: list[grpc.StatusCode] = field(default_factory=list)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        if not self.codes:
            return await continuation(details)
        code = self.codes.pop(0)

        async def refuse(request: object, context: aio.ServicerContext[Any, Any]) -> None:
            await context.abort(code, "backend gone")

        return grpc.unary_unary_rpc_method_handler(refuse)


_Unimplemented: Any = runs_pb2_grpc.RunsServicer  #: answers what it does not implement as UNIMPLEMENTED


@dataclass
class ScriptedRuns(_Unimplemented):  # type: ignore[misc]
    """A run whose history and log lie ready; streams break off after so many messages."""

    events: int = 0
    log: bytes = b""
    cuts: list[int] = field(default_factory=list)  #: messages before each stream breaks off; whole once used up
    creations: list[pb.CreateRunRequest] = field(default_factory=list)
    state: pb.Run.State.ValueType = pb.Run.SUCCEEDED

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.Run:
        return pb.Run(name=request.name, state=self.state)

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.CreateRunResponse:
        self.creations.append(request)
        if len(self.creations) == 1:  # carried out, but the answer is lost
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return pb.CreateRunResponse(run=pb.Run(name="runs/x"), created=False)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:
        left = self.cuts.pop(0) if self.cuts else self.events
        for sequence in range(request.after_sequence + 1, self.events + 1):
            if left == 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            left -= 1
            yield pb.WatchRunResponse(event=pb.RunEvent(sequence=sequence))
            yield pb.WatchRunResponse(progress=pb.Progress(step=sequence))

    async def ReadLogs(self, request: pb.ReadLogsRequest, context: Any) -> AsyncIterator[pb.ReadLogsResponse]:
        lines = self.log.splitlines(keepends=True)
        first = max(len(lines) - request.tail_lines, 0) if request.tail_lines else 0
        left = self.cuts.pop(0) if self.cuts else len(lines)
        for number in range(first, len(lines)):
            if left == 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            left -= 1
            offset = sum(map(len, lines[:number]))
            time = Timestamp(seconds=100 + number)
            yield pb.ReadLogsResponse(attempt=1, source="stdout", offset=offset, data=lines[number], time=time)


@asynccontextmanager
async def connected(runs: ScriptedRuns, faults: Faults | None = None) -> AsyncIterator[RelayClient]:
    """A client of such a server."""

    def register(server: aio.Server) -> None:
        runs_pb2_grpc.add_RunsServicer_to_server(runs, server)

    async with serving(register, *([faults] if faults else [])) as address, RelayClient.connect(address) as client:
        yield client
