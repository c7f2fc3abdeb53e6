"""What stands around every call: limits, the secret, and how errors leave."""

import asyncio
import gc
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import asyncpg
import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.config import Config
from coordinator.database.connections import DatabaseAway
from coordinator.rpc.interceptors import CONTROL_BYTES, CallGuard, finish_writing
from relay.errors import DEPLOYMENT, DeploymentForeign, LeaseLost, RelayError, TooLarge, Unauthenticated, from_rpc
from relay.logs import LineFormatter
from relay.v1 import agents_pb2, agents_pb2_grpc, artifacts_pb2, fleet_pb2, runs_pb2
from relay.v1.artifacts_pb2_grpc import ArtifactsServicer, ArtifactsStub, add_ArtifactsServicer_to_server
from relay.v1.fleet_pb2_grpc import FleetStub
from tests.conftest import RunningCoordinator, serving


class Faulty(ArtifactsServicer):
    """Fails with the error that it was given."""

    def __init__(self) -> None:
        self.error: BaseException = LeaseLost()
        self.closed = asyncio.Event()
        self.while_writing: Callable[[], object] = lambda: None

    async def StatBlobs(self, request: Any, context: Any) -> Any:
        raise self.error

    async def PutBlob(self, requests: Any, context: Any) -> Any:
        return artifacts_pb2.PutBlobResponse(size=len([request async for request in requests]))

    async def GetBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            asyncio.get_running_loop().call_soon(self.while_writing)
            yield artifacts_pb2.GetBlobResponse(chunk=b"first")
            if request.offset:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.closed.set()


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[Faulty, CallGuard, ArtifactsStub]]:
    servicer, guard = Faulty(), CallGuard()
    server = aio.server(interceptors=[guard])
    add_ArtifactsServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, guard, ArtifactsStub(channel)
    await server.stop(0)


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (LeaseLost("gone"), grpc.StatusCode.ABORTED, LeaseLost),
        (ExceptionGroup("tasks", [LeaseLost("gone")]), grpc.StatusCode.ABORTED, LeaseLost),
        (DatabaseAway("10.0.0.1 refused"), grpc.StatusCode.UNAVAILABLE, None),
        (ValueError("SELECT secret FROM t"), grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_errors_leave_as_they_should_and_tell_nothing_of_us(
    faulty: tuple[Faulty, CallGuard, ArtifactsStub],
    error: Exception,
    code: grpc.StatusCode,
    kind: type[RelayError] | None,
) -> None:
    servicer, _, stub = faulty
    servicer.error = error
    with pytest.raises(grpc.RpcError) as one:
        await stub.StatBlobs(artifacts_pb2.StatBlobsRequest())
    with pytest.raises(grpc.RpcError) as stream:
        _ = [piece async for piece in stub.GetBlob(artifacts_pb2.GetBlobRequest(offset=1))]
    for raised in (one.value, stream.value):
        assert raised.code() is code
        assert type(from_rpc(raised)) is (kind or type(None))
        assert "SELECT" not in (raised.details() or "") and "10.0.0.1" not in (raised.details() or "")


async def test_what_a_call_logs_carries_the_call_and_what_it_names(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of libraries too, and of threads; a name that is none is left out."""
    monkeypatch.setattr(caplog.handler, "formatter", LineFormatter())

    async def start(request: Any, context: Any) -> Any:
        await asyncio.to_thread(logging.getLogger("library").warning, "in a thread")
        raise ValueError("unforeseen")

    method: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        start, agents_pb2.StartAttemptRequest.FromString
    )
    server = aio.server(interceptors=[CallGuard()])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("relay.v1.Agents", {"StartAttempt": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    lease = uuid.uuid4()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in (f"runs/r/leases/{lease}", "runs/two words"):
            with pytest.raises(grpc.RpcError):
                await agents_pb2_grpc.AgentsStub(channel).StartAttempt(agents_pb2.StartAttemptRequest(lease=name))
    await server.stop(0)
    said = re.findall(r"(in a thread|call failed) (?:error=\w+ )?(.*)", caplog.text)
    call = "call=/relay.v1.Agents/StartAttempt"
    named = f"{call} run=r lease={lease}"
    assert said == [("in a thread", named), ("call failed", named), ("in a thread", call), ("call failed", call)]


async def test_a_shutdown_ends_streams_as_unavailable(faulty: tuple[Faulty, CallGuard, ArtifactsStub]) -> None:
    _, guard, stub = faulty
    call: Any = stub.GetBlob(artifacts_pb2.GetBlobRequest())
    assert (await call.read()).chunk == b"first"
    upload = stub.PutBlob()
    await upload.write(artifacts_pb2.PutBlobRequest(chunk=b"x"))
    guard.close()
    with pytest.raises(grpc.RpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE and "shutting down" in (ended.value.details() or "")
    with pytest.raises(grpc.RpcError) as broken:
        await upload
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_line_that_breaks_under_a_cancelled_call_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """F10: the call is over either way, and no one is left to learn why its last message was not sent."""
    writing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    call = asyncio.create_task(finish_writing(writing))
    await asyncio.wait([call], timeout=0)  # it has begun
    call.cancel()
    await asyncio.wait([call], timeout=0)  # it waits for what is on its way
    writing.set_exception(ConnectionError())
    await asyncio.wait([call])
    assert call.cancelled()
    del writing, call
    gc.collect()
    assert not caplog.records


async def test_a_client_that_goes_ends_its_generator(faulty: tuple[Faulty, CallGuard, ArtifactsStub]) -> None:
    servicer, _, stub = faulty
    call = stub.GetBlob(artifacts_pb2.GetBlobRequest())
    await call.read()
    call.cancel()
    async with asyncio.timeout(60):
        await servicer.closed.wait()


async def test_a_large_control_message_is_not_even_parsed(coordinator: RunningCoordinator) -> None:
    """F18, R10."""
    crowd = agents_pb2.Hello(agent="agents/a", held=[agents_pb2.HeldLease()] * (CONTROL_BYTES // 2 + 1))
    with pytest.raises(grpc.RpcError) as large:
        _ = [r async for r in coordinator.agents.Session(iter([agents_pb2.SessionRequest(hello=crowd)]), timeout=90)]
    assert isinstance(from_rpc(large.value), TooLarge)
    with pytest.raises(grpc.RpcError) as one:
        await coordinator.runs.GetRun(runs_pb2.GetRunRequest(name="x" * (CONTROL_BYTES + 1)))
    assert isinstance(from_rpc(one.value), TooLarge)


async def test_the_secret_is_asked_of_everybody_but_the_health_check(coordinator_config: Config) -> None:
    """F19."""
    async with serving(replace(coordinator_config, secret="s3cret")) as running:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "s3cret"),)):
            with pytest.raises(grpc.RpcError) as refused:
                await FleetStub(running.channel).ListAgents(fleet_pb2.ListAgentsRequest(), metadata=metadata)
            assert isinstance(from_rpc(refused.value), Unauthenticated)
            with pytest.raises(grpc.RpcError) as stream:
                watch = running.runs.WatchRun(runs_pb2.WatchRunRequest(name="runs/r"), metadata=metadata)
                _ = [response async for response in watch]
            assert isinstance(from_rpc(stream.value), Unauthenticated)
        known = (("authorization", "Bearer s3cret"),)
        await running.fleet.ListAgents(fleet_pb2.ListAgentsRequest(), metadata=known)
        health: Any = health_pb2_grpc.HealthStub(running.channel)  # its types are those of the blocking stub
        await health.Check(health_pb2.HealthCheckRequest())


async def test_calls_that_are_meant_for_another_deployment_are_turned_away(coordinator: RunningCoordinator) -> None:
    """F9: this one knows nothing of their leases, and LEASE_LOST would end the trainers."""
    async with asyncpg.create_pool(coordinator.database_url, min_size=1) as pool:
        ours = str(await pool.fetchval("SELECT deployment_id FROM deployment"))
    request = agents_pb2.StartAttemptRequest(lease=f"runs/r/leases/{uuid.uuid4()}")
    for meant, expected in ((str(uuid.uuid4()), DeploymentForeign), (ours, LeaseLost)):
        with pytest.raises(grpc.RpcError) as refused:
            await coordinator.agents.StartAttempt(request, metadata=((DEPLOYMENT, meant),))
        assert isinstance(from_rpc(refused.value), expected)
    with pytest.raises(grpc.RpcError) as stream:
        events = coordinator.agents.AppendEvents(metadata=((DEPLOYMENT, str(uuid.uuid4())),))
        _ = [response async for response in events]
    assert isinstance(from_rpc(stream.value), DeploymentForeign)


async def test_a_stream_that_ends_in_the_middle_of_a_message_says_why_all_the_same(
    faulty: tuple[Faulty, CallGuard, ArtifactsStub],
) -> None:
    """F5: the message and the reason are not sent at once, which gRPC refuses; the client would hear nothing."""
    servicer, guard, stub = faulty
    servicer.while_writing = guard.close
    with pytest.raises(aio.AioRpcError) as ended:
        _ = [piece async for piece in stub.GetBlob(artifacts_pb2.GetBlobRequest(), timeout=5)]
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (ended.value.details() or "")
