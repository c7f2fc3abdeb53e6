"""What every attempt on this host publishes with."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from agent.coordinator_client import CALL_TIMEOUT
from relay.v1 import runs_pb2, runs_pb2_grpc
from runfile import Hub
from storage.hub.commit_rate_limit import Budget
from storage.hub.worker import Worker


@dataclass(frozen=True, slots=True)
class HubMeans:
    """`defaults` is for runs that say nothing of the Hub themselves."""

    worker: Worker
    budget: Budget
    runs: runs_pb2_grpc.RunsStub  #: tells a card what other hosts did
    defaults: Hub | None = None

    async def known(self, run: str, metadata: tuple[tuple[str, str], ...]) -> list[str] | None:
        """Uris on the Hub that the registry names for a run; None when the coordinator does not say."""
        request = runs_pb2.ListCheckpointsRequest(name=run, include_superseded=True)
        asked = runs_pb2.GetRunRequest(name=run)
        try:
            answer = await self.runs.ListCheckpoints(request, metadata=metadata, timeout=CALL_TIMEOUT)
            output = (await self.runs.GetRun(asked, metadata=metadata, timeout=CALL_TIMEOUT)).output
        except grpc.aio.AioRpcError:
            return None
        uris = [copy.uri for each in answer.checkpoints for part in each.parts for copy in part.copies]
        return [uri for uri in (*uris, output.uri) if uri.startswith("hf://")]
