"""The Fleet service: hosts, for operators."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from grpc import aio

from coordinator.database.connections import Database
from coordinator.rpc import requests, responses
from coordinator.store import queries
from relay.timing import LeaseTiming
from relay.v1 import fleet_pb2 as pb
from relay.v1 import fleet_pb2_grpc

_Context = aio.ServicerContext[Any, Any]


class FleetService(fleet_pb2_grpc.FleetServicer):
    """Serves operators."""

    def __init__(self, db: Database, timing: LeaseTiming) -> None:
        self._db = db
        self._ttl = timing.ttl

    async def ListAgents(self, request: pb.ListAgentsRequest, context: _Context) -> pb.ListAgentsResponse:
        async with self._db.begin() as connection:
            found = await queries.list_agents(connection, labels=request.labels)
        return pb.ListAgentsResponse(agents=[responses.render_agent(view, self._ttl) for view in found])

    async def GetAgent(self, request: pb.GetAgentRequest, context: _Context) -> pb.Agent:
        async with self._db.begin() as connection:
            (found,) = await queries.list_agents(connection, name=requests.parse_agent_name(request.name))
        return responses.render_agent(found, self._ttl)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: _Context) -> pb.Deployment:
        async with self._db.begin() as connection:
            deployment_id, now = await queries.read_deployment(connection)
        version = metadata.version("relay-training")
        return pb.Deployment(deployment_id=str(deployment_id), version=version, time=responses.render_timestamp(now))
