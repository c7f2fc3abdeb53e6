"""A holder that lost its lease and does not know it yet: everything that it may still try to write."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from relay.errors import LeaseLost, from_rpc
from relay.v1 import agents_pb2 as pb
from relay.v1.agents_pb2_grpc import AgentsStub

DIGEST = "sha256:" + "0" * 64


async def refused_everywhere(address: str, lease: str) -> None:
    """Asserts that every write under this lease is refused as lost (S2)."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = AgentsStub(channel)
        for name, request in _writes(lease):
            try:
                answer = await getattr(stub, name)(request, timeout=90)
            except grpc.aio.AioRpcError as error:
                assert isinstance(from_rpc(error), LeaseLost), (name, error)
            else:
                raise AssertionError(f"{name} was taken: {answer}")
        stretch = pb.AppendEventsRequest(lease=lease, source="events", offset=0, data=b'{"type": "metric"}\n')
        (answer,) = [each async for each in stub.AppendEvents(iter([stretch]), timeout=90)]
        assert answer.refused.code == grpc.StatusCode.ABORTED.value[0], answer


def _writes(lease: str) -> Iterator[tuple[str, object]]:
    yield "StartAttempt", pb.StartAttemptRequest(lease=lease)
    yield "RegisterCheckpoint", pb.RegisterCheckpointRequest(lease=lease, step=1000, manifest_digest=DIGEST, files=1)
    yield "CompleteLease", pb.CompleteLeaseRequest(lease=lease, succeeded=pb.Succeeded())
    yield "CompleteLease", pb.CompleteLeaseRequest(lease=lease, stopped=pb.Stopped(cause=pb.Stopped.TRUST_LOST))
