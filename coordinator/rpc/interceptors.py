"""Interceptors around every call: the shared secret, the deployment that is meant, size limits, and how errors are
sent.

A domain error is sent as its own status. A database that cannot be reached is UNAVAILABLE, which clients retry.
Anything else is a mistake of ours: INTERNAL with a number, under which the log has the traceback; nothing of it is
sent. INTERNAL carries no reason, so that it is retried too, with backoff: an unforeseen error is more often a passing
state of the database than a poisoned request.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn, TypeAlias, cast

import grpc
from grpc import aio
from grpc_status import rpc_status

from coordinator.database.connections import DatabaseAway
from relay.errors import DEPLOYMENT, DeploymentForeign, RelayError, TooLarge, Unauthenticated
from relay.logs import bind, get_logger, name_fields
from storage.base import StoreUnavailable

KIB = 1024
CONTROL_BYTES = 256 * KIB  # 4 MiB of empty submessages become half a GB of Python objects
LARGER_BYTES = {
    "/relay.v1.Agents/AppendEvents": 2048 * KIB,
    "/relay.v1.Artifacts/PutBlob": 1088 * KIB,
    "/relay.v1.Artifacts/StatBlobs": 1024 * KIB,
    "/relay.v1.Runs/CreateRun": 2048 * KIB,
    "/relay.v1.Runs/ImportRun": 2048 * KIB,
}
LARGEST_BYTES = max(LARGER_BYTES.values())
OPEN_TO_ALL = ("/grpc.health.v1.Health/",)

_log = get_logger(__name__)
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Continue: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


class SecretInterceptor(aio.ServerInterceptor):
    """Admits callers that present the shared secret, and anyone to the health service."""

    def __init__(self, secret: str) -> None:
        self._expected = f"Bearer {secret}".encode()

    async def intercept_service(self, continuation: _Continue, details: grpc.HandlerCallDetails) -> _Handler | None:
        handler = await continuation(details)
        if handler is None or self._may(details):
            return handler
        return _with_behavior(handler, _refuse)

    def _may(self, details: grpc.HandlerCallDetails) -> bool:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        given_bytes = given if isinstance(given, bytes) else given.encode()
        return details.method.startswith(OPEN_TO_ALL) or hmac.compare_digest(given_bytes, self._expected)


async def _refuse(_request: object, context: aio.ServicerContext[Any, Any]) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(Unauthenticated().status()))


class DeploymentInterceptor(aio.ServerInterceptor):
    """Refuses agents that work for another deployment: this one does not know their leases."""

    def __init__(self, deployment_id: str) -> None:
        self._id = deployment_id

    async def intercept_service(self, continuation: _Continue, details: grpc.HandlerCallDetails) -> _Handler | None:
        handler = await continuation(details)
        meant = dict(details.invocation_metadata or ()).get(DEPLOYMENT, self._id)
        return handler if handler is None or meant == self._id else _with_behavior(handler, self._turn_away)

    async def _turn_away(self, _request: object, context: aio.ServicerContext[Any, Any]) -> NoReturn:
        foreign = DeploymentForeign(f"this is deployment {self._id}", deployment=self._id)
        await context.abort_with_status(rpc_status.to_status(foreign.status()))


class _OversizedMessage:
    """Takes the place of a message that was too large to be parsed."""

    def __init__(self, size: int, limit: int) -> None:
        self.error = TooLarge(f"a message of {size} bytes; at most {limit} are taken here", limit=str(limit))


class CallGuard(aio.ServerInterceptor):
    """Enforces size limits and translates errors. `close()` ends all streams, for a shutdown that hands over."""

    def __init__(self) -> None:
        self._streams: set[asyncio.Task[Any]] = set()
        self._closing = False

    def close(self) -> None:
        """End every stream with UNAVAILABLE: its client continues with another replica, or the next process."""
        self._closing = True
        for task in self._streams:
            task.cancel()

    async def intercept_service(self, continuation: _Continue, details: grpc.HandlerCallDetails) -> _Handler | None:
        handler = await continuation(details)
        if handler is None:
            return handler
        behavior = _get_behavior(handler)

        async def answer(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            if self._closing:  # it came while the server was already told to stop
                await self._hand_over(context)
            # Also a unary answer may stand at the end of a long upload.
            streams = handler.request_streaming or handler.response_streaming
            with self._listed(streams), bind(call=details.method, **_find_names(request)):
                try:
                    if handler.response_streaming:
                        return await _write_all(behavior, _check_size(request), context)
                    return await behavior(_check_size(request), context)
                except BaseException as error:  # cancellation too: `_leave` says what the client is told, and raises
                    await self._leave(error, context)

        return _with_behavior(_with_size_limit(handler, LARGER_BYTES.get(details.method, CONTROL_BYTES)), answer)

    @contextmanager
    def _listed(self, ends_early: bool) -> Iterator[None]:
        """Let `close()` end the current call while the block runs."""
        task = asyncio.current_task()
        if not ends_early or task is None:
            yield
            return
        self._streams.add(task)
        try:
            yield
        finally:
            self._streams.discard(task)

    async def _hand_over(self, context: aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this coordinator is shutting down; connect again")

    async def _leave(self, error: BaseException, context: aio.ServicerContext[Any, Any]) -> NoReturn:
        if isinstance(error, asyncio.CancelledError) and self._closing:
            await self._hand_over(context)
        if not isinstance(error, Exception) or isinstance(error, aio.AbortError):
            raise error
        match _unwrap_group(error):
            case RelayError() as cause:
                await context.abort_with_status(rpc_status.to_status(cause.status()))
            case DatabaseAway():
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the database is out of reach; try again")
            case StoreUnavailable() as cause:
                _log.warning("artifact store out of reach", reason=cause)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the artifact store is out of reach; try again")
            case cause:
                number = uuid.uuid4().hex[:12]
                _log.error("call failed", error=number, exc_info=cause)
                await context.abort(grpc.StatusCode.INTERNAL, f"an error of the coordinator's own; its log: {number}")


def _find_names(request: object) -> dict[str, str]:
    """Return the run, lease, checkpoint and agent that a request names; none of a stream, of which each message may."""
    named: dict[str, str] = {}
    for field in ("name", "agent", "run", "checkpoint", "lease"):
        if isinstance(name := getattr(request, field, None), str):
            named |= name_fields(name)
    return named


def _unwrap_group(error: BaseException) -> BaseException:
    """Return the error inside an exception group that has only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _with_size_limit(handler: _Handler, limit: int) -> _Handler:
    """Return the same method, except that a larger message is not parsed."""
    parse = handler.request_deserializer

    def parse_limited(data: bytes) -> Any:
        return _OversizedMessage(len(data), limit) if len(data) > limit else parse(data) if parse else data

    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(_get_behavior(handler), parse_limited, handler.response_serializer)


def _check_size(request: Any) -> Any:
    if isinstance(request, _OversizedMessage):
        raise request.error
    return _check_each_size(request) if hasattr(request, "__aiter__") else request


async def _check_each_size(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _check_size(request)


async def _write_all(behavior: Callable[..., Any], request: Any, context: Any) -> None:
    """Run a streaming method of either form: one that returns a generator, or one that writes to its context.

    Writing here, instead of yielding onwards, means that a cancelled call ends its generator at once, not when it is
    garbage-collected.
    """
    responses = behavior(request, context)
    if inspect.isawaitable(responses):
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            await finish_writing(asyncio.ensure_future(context.write(response)))


async def finish_writing(writing: asyncio.Future[None]) -> None:
    """Let a cancelled call end only after the message that is being written: gRPC accepts one operation at a time.

    A reader that no longer reads delays the end of its own call only, until the server's grace period is over.
    """
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        writing.add_done_callback(_ignore_failure)
        await asyncio.wait([writing])
        raise


def _ignore_failure(writing: asyncio.Future[None]) -> None:
    """Retrieve the error of a write whose call was cancelled, so that it is not logged."""
    if not writing.cancelled():
        writing.exception()


_MAKERS: dict[tuple[bool, bool], Callable[..., _Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _get_behavior(handler: _Handler) -> Callable[..., Any]:
    behaviors = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return cast("Callable[..., Any]", next(behavior for behavior in behaviors if behavior is not None))


def _with_behavior(handler: _Handler, behavior: Callable[..., Any]) -> _Handler:
    """Return the same method with another behaviour, which writes to its context if the method streams."""
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(behavior, handler.request_deserializer, handler.response_serializer)
