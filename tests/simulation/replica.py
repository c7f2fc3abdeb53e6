"""A coordinator process: the real services and the real Agents service, over a simulated database."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import grpc

from coordinator.artifacts.base import Artifacts
from coordinator.background import planner, reaper
from coordinator.commands.events import Appender
from coordinator.database.connections import Database
from coordinator.rpc.agents import AgentsService
from coordinator.rpc.interceptors import CallGuard
from coordinator.rpc.sessions import HeartbeatBatcher, Sessions
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2_grpc
from storage.manifest import Manifest
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.store.database import SimulatedDatabase


class _Everything:
    """Whatever agents put where all can reach it is there; what it names is not looked at."""

    complete = True

    def stat(self, _: str, /) -> _Everything:
        return self

    def stats(self, digests: Sequence[str], /) -> list[_Everything]:
        return [self for _ in digests]

    def read(self, _: str, __: int) -> bytes:
        return Manifest(()).to_bytes()


class Replica:
    """One process; it cannot be started again, another takes its place."""

    def __init__(self, loop: VirtualLoop, name: str, database: SimulatedDatabase, timing: LeaseTiming) -> None:
        self.process = Process(loop, name)
        self._database = database
        self.db = db = cast(Database, database)  #: as commands take it
        self._guard = CallGuard()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        heartbeats, appender = HeartbeatBatcher(db, timing), Appender(db, loop.time)
        sessions = Sessions(db, timing, heartbeats)
        service = AgentsService(db, cast(Artifacts, _Everything()), sessions, appender, timing)
        agents_pb2_grpc.add_AgentsServicer_to_server(service, cast(grpc.aio.Server, self))
        for work in (
            heartbeats.run(),
            appender.run(),
            planner.plan_forever(db, timing),
            reaper.reap_forever(db, timing, monotonic=loop.time),
        ):
            self.process.spawn(work)

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Accept what generated code registers; the next method receives the same in a simpler form."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self._handlers |= {f"/{service}/{method}": handler for method, handler in handlers.items()}

    async def handler(self, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        """The method behind the guard."""

        async def plain(_: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            return self._handlers[path]

        details = cast("grpc.HandlerCallDetails", SimpleNamespace(method=path, invocation_metadata=()))
        found = await self._guard.intercept_service(plain, details)
        assert found is not None
        return found

    def cut_notifications(self, cut: bool) -> None:
        """Whether it hears what transactions announce."""
        self._database.notifications.cut_off = cut

    def kill(self) -> None:
        """SIGKILL: its connections to the database end with it."""
        self.process.kill()
        self._database.kill()
