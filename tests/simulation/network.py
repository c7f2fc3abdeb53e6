"""The network between hosts and replicas: gRPC's calls and streams as the agent and the coordinator use them.

Messages are sent as bytes over connections that keep their order, until they break. Beyond what TCP does, heartbeats
and their replies are also lost, duplicated and reordered, and unary requests and byte ranges of events arrive again
much later, as through a proxy that retries: the protocol claims to withstand that too (F17).

A partition swallows what is sent until it is over, or until the pings of either side have had no answer for so long
that the connection breaks. So does a process that is frozen; one that was killed resets its connections at once, unless
its host lost its power.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol, cast

import grpc
from grpc import aio

from agent.coordinator_client import Coordinator
from tests.simulation.loop import Process, VirtualLoop

PINGS = 5.0  #: seconds without an answer to a ping that break a connection
TICK = 0.25  #: seconds between two looks at the connections
SESSION = "/relay.v1.Agents/Session"
APPEND = "/relay.v1.Agents/AppendEvents"


class Way(enum.Enum):
    """Of a message."""

    UP = "up"  #: to the coordinator
    DOWN = "down"


@dataclass(slots=True)
class Weather:
    """What happens to messages. Probabilities, and seconds."""

    latency: float = 0.004  #: mean
    lost: float = 0.0  #: heartbeats and beats
    doubled: float = 0.0
    overtaken: float = 0.0
    late: float = 10.0  #: at most so much later a doubled request arrives again
    replies_lost: float = 0.0  #: of unary calls: the connection breaks when the reply is written


class Server(Protocol):
    """A replica that takes calls."""

    @property
    def process(self) -> Process: ...

    async def handler(self, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        """The method, with all that stands around it."""


@dataclass(slots=True)
class Network:
    """All connections there are."""

    loop: VirtualLoop
    random: Random
    servers: list[Server] = field(default_factory=list)
    calm: Weather = field(default_factory=Weather)  #: what it is like when nothing goes wrong
    weather: Weather = field(default_factory=Weather)
    blocked: list[tuple[str, Way]] = field(default_factory=list)  #: hosts that are cut off, and which way
    connections: list[Connection] = field(default_factory=list)
    answered: Callable[[Any], None] = lambda _: None  #: called with every message that a server writes
    on_message: Callable[[str, Way, str, bytes], None] = lambda *_: (
        None
    )  #: called for every message that is sent: host, way, method
    context: Context = field(default_factory=Context)  #: nobody's: what is under way arrives whoever is frozen

    def clear_up(self) -> None:
        """Nothing goes wrong any more."""
        self.weather = replace(self.calm)

    def watch(self) -> None:
        """Look at the connections now and for ever."""
        for connection in list(self.connections):
            connection.look()
        self.loop.call_later(TICK, self.watch, context=self.context)

    def coordinator(self, host: str, process: Process) -> Coordinator:
        """The coordinator as a process of a host reaches it."""
        return _Reached(self, host, process)

    def swallows(self, host: str, way: Way) -> bool:
        """Whether what a host sends, or is sent, gets lost."""
        return (host, way) in self.blocked

    def unblocked(self) -> None:
        """Release what connections held back."""
        for connection in list(self.connections):
            connection.flush()

    def go_on(self) -> None:
        """No connection stalls, or holds anything back."""
        for connection in list(self.connections):
            connection.go_on()

    def chance(self, probability: float) -> bool:
        """Whether something happens."""
        return probability > 0 and self.random.random() < probability

    def delay(self) -> float:
        """Seconds that a message takes."""
        return self.random.expovariate(1 / self.weather.latency)


class _Reached(Coordinator):
    """A coordinator behind the simulated network."""

    def __init__(self, network: Network, host: str, process: Process) -> None:
        super().__init__("coordinator")
        object.__setattr__(self, "_open", lambda: Channel(network, host, process))

    def dial(self) -> grpc.aio.Channel:
        return cast("grpc.aio.Channel", self._open())  # type: ignore[attr-defined]


class Connection:
    """One connection from a host's process to a replica."""

    def __init__(self, network: Network, host: str, client: Process, server: Server) -> None:
        self._network = network
        self.host = host
        self.client = client
        self.server = server
        self.broken = False
        self.stalled = False  #: something on the way holds it back, and only it
        self._stuck: float | None = None
        self._last = {Way.UP: 0.0, Way.DOWN: 0.0}
        self._held: deque[tuple[Way, Callable[[], None]]] = deque()
        self._draining = False
        self._calls: list[_Call] = []
        network.connections.append(self)

    def begin(self, call: _Call) -> None:
        """A call goes over this connection."""
        self._calls.append(call)

    def end(self, call: _Call) -> None:
        """It does no more."""
        if call in self._calls:
            self._calls.remove(call)

    def post(self, way: Way, deliver: Callable[[], None], *, out_of_order: bool = False) -> None:
        """Lets something arrive at the other end, after what was posted before it."""
        if self.broken:
            return
        loop, at = self._network.loop, self._network.loop.time() + self._network.delay()
        if out_of_order:
            at += self._network.random.uniform(0.0, 2.0)
        else:
            self._last[way] = at = max(self._last[way] + 1e-6, at)  # what happens at one moment has no order
        loop.call_at(at, self._arrive, way, deliver, context=self._network.context)

    def _arrive(self, way: Way, deliver: Callable[[], None]) -> None:
        if self.broken:
            return
        if self._swallows(way) or any(held is way for held, _ in self._held):
            self._held.append((way, deliver))
        else:
            deliver()

    def _swallows(self, way: Way) -> bool:
        return self.stalled or self._network.swallows(self.host, way)

    def go_on(self) -> None:
        """It stalls no longer."""
        self.stalled = False
        self.flush()

    def flush(self) -> None:
        """What was held back arrives, before whatever is still under way."""
        if not self._draining:
            self._drain()

    def _drain(self) -> None:
        """One message, and then the next: the other end has time to act on each before the stream's end comes."""
        self._draining = False
        free = next((held for held in self._held if not self._swallows(held[0])), None)
        if self.broken or free is None:
            return
        self._held.remove(free)
        self._draining = True
        self._network.loop.call_later(1e-6, self._drain, context=self._network.context)
        free[1]()

    def close(self) -> None:
        """Its client hears no more; what it has sent still arrives, perhaps after what it sends over another one."""
        for call in list(self._calls):
            call.fail(grpc.StatusCode.CANCELLED, "the connection was closed")
            call.cancel()
        self.post(Way.UP, self.break_)

    def look(self) -> None:
        """Breaks when one side is dead, or has had no answer for too long."""
        now = self._network.loop.time()
        cut = any(self._swallows(way) for way in Way)
        if not cut and not (self.client.alive and self.server.process.alive):
            self.break_()
        elif not cut and self.client.running and self.server.process.running:
            self._stuck = None
        elif self._stuck is None:
            self._stuck = now
        elif now - self._stuck > PINGS:
            self.break_()

    def break_(self) -> None:
        """Break the connection at both ends."""
        if self.broken:
            return
        self.broken = True
        self._network.connections.remove(self)
        for call in self._calls:
            call.fail(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            call.abandon()
        self._calls = []


class _Call:
    """One call, seen from both ends."""

    def __init__(self, network: Network, connection: Connection, path: str) -> None:
        self.network = network
        self.connection = connection
        self.path = path
        self.answers: asyncio.Queue[bytes | aio.AioRpcError | None] = asyncio.Queue()  #: None: it ended well
        self.requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.serving: asyncio.Task[None] | None = None
        self.over = False
        connection.begin(self)

    def open(self) -> None:
        """Reaches the server, which begins to serve."""
        self.connection.post(Way.UP, self._serve)

    def _serve(self) -> None:
        server = self.connection.server
        if server.process.alive:
            self.serving = server.process.spawn(_served(server, self))

    def request(self, data: bytes, *, first: bool = False) -> None:
        """A message of the client's."""
        self.network.on_message(self.connection.host, Way.UP, self.path, data)
        self._post(Way.UP, lambda: self.requests.put_nowait(data), tossed=self.path == SESSION and not first)
        again = self.path == APPEND or (self.path == SESSION and first)
        if again and self.network.chance(self.network.weather.doubled):
            replay(self.network, self.path, [data])

    def answer(self, data: bytes) -> None:
        """A message of the server's."""
        self.network.on_message(self.connection.host, Way.DOWN, self.path, data)
        self._post(Way.DOWN, lambda: self.answers.put_nowait(data), tossed=self.path == SESSION)

    def _post(self, way: Way, deliver: Callable[[], None], *, tossed: bool) -> None:
        weather, chance = self.network.weather, self.network.chance
        if tossed and chance(weather.lost):
            return
        self.connection.post(way, deliver, out_of_order=tossed and chance(weather.overtaken))
        if tossed and chance(weather.doubled):
            self.connection.post(way, deliver, out_of_order=True)

    def finish(self, outcome: aio.AioRpcError | None) -> None:
        """The server has ended the call; its client may never hear of it."""
        if self.path != SESSION and self.path != APPEND and self.network.chance(self.network.weather.replies_lost):
            self.connection.break_()
            return
        self.connection.post(Way.DOWN, lambda: self._ended(outcome))

    def _ended(self, outcome: aio.AioRpcError | None) -> None:
        self.connection.end(self)
        if not self.over:
            self.over = True
            self.answers.put_nowait(outcome)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Let the client's call fail."""
        if not self.over:
            self.over = True
            self.answers.put_nowait(failure(code, details))

    def abandon(self) -> None:
        """Let the server find its client gone."""
        if self.serving is not None:
            self.serving.cancel()

    def cancel(self) -> None:
        """The client wants no more."""
        self.over = True
        self.connection.post(Way.UP, self.abandon)
        self.connection.post(Way.UP, lambda: self.connection.end(self))


class Channel:
    """What generated stubs call, in place of grpc.aio.Channel. Connects when it is used, and again after a break."""

    def __init__(self, network: Network, host: str, process: Process) -> None:
        self._network = network
        self._host = host
        self._process = process
        self._connection: Connection | None = None

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As far as this end is concerned."""
        if self._connection is not None:
            self._connection.close()

    async def connected(self) -> Connection:
        """Return the connection; UNAVAILABLE when no replica can be reached."""
        if self._connection is not None and not self._connection.broken:
            return self._connection
        await asyncio.sleep(self._network.delay())
        if any(self._network.swallows(self._host, way) for way in Way):
            await asyncio.sleep(2.0)
            raise failure(grpc.StatusCode.UNAVAILABLE, "nobody answers")
        servers = [server for server in self._network.servers if server.process.alive]
        if not servers:
            raise failure(grpc.StatusCode.UNAVAILABLE, "nobody listens")
        self._connection = Connection(self._network, self._host, self._process, self._network.random.choice(servers))
        return self._connection

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Callable[..., Any]:
        async def call(request: Any, *, metadata: Any = None, timeout: float | None = None) -> Any:  # noqa: ASYNC109
            try:
                async with asyncio.timeout(timeout):
                    return response_deserializer(await self._ask(path, request_serializer(request)))
            except TimeoutError:
                raise failure(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow") from None

        return call

    async def _ask(self, path: str, request: bytes) -> bytes:
        call = _Call(self._network, await self.connected(), path)
        if self._network.chance(self._network.weather.doubled):
            replay(self._network, path, [request])
        call.open()
        call.request(request, first=True)
        try:
            answer = await call.answers.get()
            if isinstance(answer, bytes):
                return answer
            raise answer or failure(grpc.StatusCode.INTERNAL, "no answer")
        finally:
            call.cancel()

    def stream_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Callable[..., Any]:
        return lambda metadata=None: Stream(self._network, self, path, request_serializer, response_deserializer)

    unary_stream = stream_unary = stream_stream  # of the artifacts' service, which the simulation does not serve


class Stream:
    """A bidirectional call, as grpc.aio gives it."""

    def __init__(
        self,
        network: Network,
        channel: Channel,
        path: str,
        serialize: Callable[[Any], bytes],
        parse: Callable[[bytes], Any],
    ) -> None:
        self._network = network
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._parse = parse
        self._opening = asyncio.ensure_future(self._open())
        self._first = True
        self._failed: aio.AioRpcError | None = None

    async def _open(self) -> _Call | aio.AioRpcError:
        try:
            call = _Call(self._network, await self._channel.connected(), self._path)
        except aio.AioRpcError as error:
            return error
        call.open()
        return call

    async def _call(self) -> _Call:
        found = await asyncio.shield(self._opening)
        if isinstance(found, aio.AioRpcError):
            raise found
        return found

    async def write(self, message: Any) -> None:
        call = await self._call()
        if call.over:
            raise asyncio.InvalidStateError("the call is over")
        call.request(self._serialize(message), first=self._first)
        self._first = False
        await asyncio.sleep(0)

    async def read(self) -> Any:
        if self._failed is not None:
            raise self._failed
        answer = await (await self._call()).answers.get()
        if isinstance(answer, bytes):
            return self._parse(answer)
        if answer is None:
            return aio.EOF
        self._failed = answer
        raise answer

    def cancel(self) -> None:
        if not self._opening.done():
            self._opening.cancel()
        elif not self._opening.cancelled() and isinstance(call := self._opening.result(), _Call):
            call.cancel()


def failure(code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, Any]] = ()) -> aio.AioRpcError:
    """What a call fails with at its client."""
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details=details)


class _Context:
    """A call as its handler sees it."""

    def __init__(self, network: Network, call: _Call | None, serialize: Callable[[Any], bytes]) -> None:
        self._network = network
        self._call = call
        self._serialize = serialize
        self.outcome: aio.AioRpcError | None = None

    async def write(self, message: Any) -> None:
        self._network.answered(message)
        if self._call is not None:
            self._call.answer(self._serialize(message))
        await asyncio.sleep(0)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        self.outcome = failure(code, details, tuple(trailing or ()))
        raise aio.AbortError()

    async def abort_with_status(self, status: Any) -> None:
        await self.abort(status.code, status.details, status.trailing_metadata)


class _Requests:
    """A stream of requests, as its handler reads it."""

    def __init__(self, queue: asyncio.Queue[bytes | None], parse: Callable[[bytes], Any]) -> None:
        self._queue = queue
        self._parse = parse

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        data = await self._queue.get()
        if data is None:
            raise StopAsyncIteration
        return self._parse(data)


async def _served(server: Server, call: _Call) -> None:
    """The server's side of a call."""
    call.finish(await _handle(call.network, server, call.path, call.requests, call))


async def _handle(
    network: Network, server: Server, path: str, requests: asyncio.Queue[bytes | None], call: _Call | None
) -> aio.AioRpcError | None:
    """Carry out a call; without `call` its answers are discarded."""
    handler = await server.handler(path)
    assert handler.request_deserializer is not None and handler.response_serializer is not None
    context = _Context(network, call, handler.response_serializer)
    try:
        if handler.stream_stream is not None:
            stream: Any = handler.stream_stream
            await stream(_Requests(requests, handler.request_deserializer), context)
        else:
            unary: Any = handler.unary_unary
            request = handler.request_deserializer(cast(bytes, await requests.get()))
            await context.write(await unary(request, context))
    except aio.AbortError:
        return context.outcome
    return None


def replay(network: Network, path: str, messages: Sequence[bytes]) -> None:
    """Deliver the same request to some replica once more, perhaps much later, and discard the answer (F17)."""

    def again() -> None:
        servers = [server for server in network.servers if server.process.running]
        if servers:
            server, requests = network.random.choice(servers), asyncio.Queue[bytes | None]()
            for message in (*messages, None):
                requests.put_nowait(message)
            server.process.spawn(_replayed(network, server, path, requests))

    network.loop.call_later(network.random.uniform(0.0, network.weather.late), again, context=network.context)


async def _replayed(network: Network, server: Server, path: str, requests: asyncio.Queue[bytes | None]) -> None:
    await _handle(network, server, path, requests, None)
