"""Between the contract's messages and the coordinator's values. Requests are checked here, before anything is asked of
the database: names, ids, counts, and bytes that Postgres cannot hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf import any_pb2, duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from coordinator.lifecycle import Cause, Outcome
from coordinator.values import (
    Completion,
    Copy,
    CursorAt,
    Held,
    Hello,
    Import,
    ImportedCheckpoint,
    NewCheckpoint,
    Pulse,
    Readiness,
    Skipped,
    Submission,
)
from relay.errors import DOMAIN, InvalidRequest, TooLarge
from relay.v1 import agents_pb2, fleet_pb2, runs_pb2
from storage.manifest import DIGEST_PATTERN

MAX_HELD = 1024
MAX_LISTED = 10_000
MAX_METRICS = 1000
MAX_IMPORTED = 1000  #: checkpoints
MAX_STEP = 2**62
SOURCES = ("events", "agent", "stdout", "stderr")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_COPY = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\0]{0,1024}")


# Names


def run_id(name: str) -> str:
    """The id in `runs/{run}`."""
    return _checked_name(name, "runs/")


def agent_name(name: str) -> str:
    """The name in `agents/{agent}`."""
    return _checked_name(name, "agents/")


def _checked_name(name: str, prefix: str) -> str:
    rest = name.removeprefix(prefix)
    if not name.startswith(prefix) or not _NAME.fullmatch(rest):
        kind = prefix.rstrip("s/")
        raise InvalidRequest(
            f"{rest[:200]!r} names no {kind}: {prefix}NAME, of small letters, digits, '.', '_' and '-', at most 128"
        )
    return rest


def lease_id(name: str) -> UUID:
    """The id in `runs/{run}/leases/{lease}`."""
    return _checked_id(name, "leases")


def checkpoint_id(name: str) -> UUID:
    """The id in `runs/{run}/checkpoints/{checkpoint}`."""
    return _checked_id(name, "checkpoints")


def _checked_id(name: str, kind: str) -> UUID:
    match name.split("/"):
        case ["runs", run, found, text] if found == kind and _NAME.fullmatch(run):
            try:
                return UUID(text)
            except ValueError:
                pass
    raise InvalidRequest(f"{name[:300]!r} is not a name like runs/some-run/{kind}/<id>")


def lease_name(run: str, lease: UUID) -> str:
    """How a lease is addressed."""
    return f"runs/{run}/leases/{lease}"


def checkpoint_name(run: str, checkpoint: UUID) -> str:
    """How a checkpoint is addressed."""
    return f"runs/{run}/checkpoints/{checkpoint}"


# Requests


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON values, to be stored; 64-bit numbers are text in it. Refuses what Postgres cannot hold."""
    values = MessageToDict(message, preserving_proto_field_name=True)
    if "\\u0000" in json.dumps(values):
        raise InvalidRequest("a text holds a NUL character")
    return values


def _text(value: str, what: str, limit: int = 4096) -> str:
    if "\0" in value or len(value) > limit:
        raise InvalidRequest(f"{what} holds a NUL character or is longer than {limit}")
    return value


def _few(items: Sized, limit: int, what: str) -> None:
    if len(items) > limit:
        raise TooLarge(f"{len(items)} {what}; at most {limit} are taken")


def hello(message: agents_pb2.Hello) -> Hello:
    """The first message of a session."""
    gpus = [gpu.index for gpu in message.capability.gpus]
    if len(set(gpus)) != len(gpus) or any(not 0 <= index < 1024 for index in gpus):
        raise InvalidRequest("GPUs must have distinct indices below 1024")
    if not 0 <= message.capability.slots <= 1024:
        raise InvalidRequest("a host has at most 1024 slots")
    if not message.instance_id or not message.boot_id:
        raise InvalidRequest("a hello names its instance and its boot")
    labels = {_text(key, "a label", 256): _text(value, "a label", 256) for key, value in message.labels.items()}
    return Hello(
        agent=agent_name(message.agent),
        instance_id=_text(message.instance_id, "instance_id", 256),
        boot_id=_text(message.boot_id, "boot_id", 256),
        deployment_id=message.deployment_id,
        capability=plain(message.capability),
        labels=labels,
        slots=tuple(gpus) or tuple(range(max(1, message.capability.slots))),
        held=held(message.held),
        readiness=readiness(message.readiness),
        dial=message.dial,
    )


def held(items: Sequence[agents_pb2.HeldLease]) -> tuple[Held, ...]:
    """What an agent lists, each place once."""
    _few(items, MAX_HELD, "held leases")
    phases = agents_pb2.HeldLease.Phase
    found: dict[tuple[UUID, int], Held] = {}
    for item in items:
        lease, phase = lease_id(item.lease), phases.Name(item.phase) if item.phase in phases.values() else "RUNNING"
        _few(item.slots, 1024, "slots")
        slots = tuple(slot for slot in item.slots if 0 <= slot < 2**31)
        found[lease, item.node] = Held(lease, item.node, phase.lower(), slots)
    return tuple(found.values())


def readiness(message: agents_pb2.Readiness) -> Readiness:
    """Whether an agent takes work."""
    return Readiness(message.ready, _text(message.reason, "a reason"), message.leaving)


def pulse(agent: str, session_id: UUID, message: agents_pb2.Heartbeat) -> Pulse:
    """A heartbeat of a session."""
    readings = plain(message.readings) if message.HasField("readings") else None
    return Pulse(
        agent=agent,
        session_id=session_id,
        held=held(message.held),
        readiness=readiness(message.readiness),
        readings=readings,
    )


def cursors(items: Sequence[agents_pb2.Cursor]) -> tuple[CursorAt, ...]:
    """Byte offsets of sources."""
    _few(items, 4096, "cursors")
    for item in items:
        if item.source not in SOURCES or not 0 <= item.offset < MAX_STEP or item.node < 0:
            raise InvalidRequest(f"{item.source[:40]!r} at {item.offset} is not a cursor")
    return tuple(CursorAt(item.node, item.source, item.offset) for item in items)


def skipped(items: Sequence[runs_pb2.SkippedCheckpoint]) -> tuple[Skipped, ...]:
    """Checkpoints that were refused."""
    _few(items, 1000, "skipped checkpoints")
    return tuple(Skipped(checkpoint_id(i.checkpoint), i.step, _text(i.reason, "a reason")) for i in items)


def copy(message: runs_pb2.Copy) -> Copy:
    """A copy of a checkpoint's part."""
    if not _COPY.fullmatch(message.uri) or not message.uri.startswith(f"{message.store}://"):
        raise InvalidRequest(f"{message.uri[:200]!r} is not where a copy in {message.store[:40]!r} can be")
    return Copy(store=message.store, uri=message.uri)


def session_id(text: str) -> UUID:
    """The id of an agent's session."""
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidRequest(f"{text[:100]!r} is not a session's id") from error


def gone(items: Sequence[agents_pb2.Removal]) -> list[tuple[UUID, int, str]]:
    """Copies that were removed: checkpoint, node, uri."""
    _few(items, 1000, "removals")
    return [(checkpoint_id(item.checkpoint), item.node, copy(item.copy).uri) for item in items]


def sealed(items: Sequence[agents_pb2.SealedCheckpoint]) -> dict[tuple[UUID, int], agents_pb2.SealedCheckpoint]:
    """What lies on a host's disk, by lease and step."""
    _few(items, 1000, "sealed checkpoints")
    if any(not 0 <= item.step < MAX_STEP for item in items):
        raise InvalidRequest("a step is not negative")
    return {(lease_id(item.lease), item.step): item for item in items}


def new_checkpoint(request: agents_pb2.RegisterCheckpointRequest) -> NewCheckpoint:
    """One node's part of a checkpoint."""
    _few(request.metrics, MAX_METRICS, "metrics")
    if not DIGEST_PATTERN.match(request.manifest_digest):
        raise InvalidRequest("manifest_digest is not a digest like sha256:<64 hex digits>")
    if not 0 <= request.step < MAX_STEP or min(request.size, request.files) < 0:
        raise InvalidRequest("step, size and files are not negative")
    return NewCheckpoint(
        node=request.node,
        step=request.step,
        manifest_digest=request.manifest_digest,
        size=request.size,
        files=request.files,
        metrics=_finite(request.metrics),
        after=cursors(request.required_cursors),
        copies=tuple(copy(item) for item in request.copies),
    )


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN: such a metric says nothing about a checkpoint, and the curve has it anyway."""
    return {_text(name, "a metric's name", 256): value for name, value in metrics.items() if value - value == 0.0}


def completion(request: agents_pb2.CompleteLeaseRequest) -> Completion:
    """How an attempt ended."""
    step = request.registered_step if request.HasField("registered_step") else None
    return replace(_outcome(request), registered_step=step)


def _outcome(request: agents_pb2.CompleteLeaseRequest) -> Completion:
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    final = cursors(request.final_cursors)
    match request.WhichOneof("outcome"):
        case "succeeded":
            message = request.succeeded
            found = output(message.output) if message.HasField("output") else None
            return Completion(node=request.node, outcome=Outcome.SUCCEEDED, digest=digest, output=found, final=final)
        case "stopped":
            return Completion(
                node=request.node, outcome=Outcome.STOPPED, digest=digest, cause=_cause(request.stopped), final=final
            )
        case "failed":
            error = {**failure(request.failed.error), "last_lines": _printable(request.failed.last_lines)}
            return Completion(
                node=request.node,
                outcome=Outcome.FAILED,
                digest=digest,
                error=error,
                permanent=request.failed.permanent,
                final=final,
            )
        case "faulted":
            error = failure(request.faulted.error)
            return Completion(node=request.node, outcome=Outcome.FAULTED, digest=digest, error=error)
    raise InvalidRequest("a completion says how the attempt ended")


def _cause(message: agents_pb2.Stopped) -> Cause:
    stopped = agents_pb2.Stopped
    return {stopped.LEAVING: Cause.LEAVING, stopped.TRUST_LOST: Cause.TRUST_LOST}.get(message.cause, Cause.REQUESTED)


def output(message: runs_pb2.Output) -> dict[str, Any]:
    """A published result."""
    if not DIGEST_PATTERN.match(message.manifest_digest):
        raise InvalidRequest("manifest_digest is not a digest like sha256:<64 hex digits>")
    found = {"manifest_digest": message.manifest_digest, "files": message.files, "size": message.size}
    return found | ({"uri": _text(message.uri, "a result's uri")} if message.uri else {})


def failure(message: status_pb2.Status) -> dict[str, Any]:
    """What failed, as it is stored: {code, reason, message}."""
    reason = ""
    for detail in message.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            reason = info.reason
    return {"code": message.code, "reason": _printable(reason), "message": _printable(message.message)}


def _printable(text: str, limit: int = 16_384) -> str:
    """What a failing program printed is taken as it is, but for its length and what cannot be stored."""
    return text.replace("\0", "�")[-limit:]


def submission(request: runs_pb2.CreateRunRequest | runs_pb2.ImportRunRequest) -> Submission:
    """A run to be created."""
    if request.run_id and not _NAME.fullmatch(request.run_id):
        raise InvalidRequest(f"{request.run_id[:200]!r} is not a run id: small letters, digits, '.', '_' and '-'")
    _few(request.inputs, MAX_LISTED, "inputs")
    return Submission(
        run_id=request.run_id,
        request_id=_text(request.request_id, "request_id", 256),
        spec=plain(request.spec),
        inputs=tuple(
            {"path": i.path, "digest": i.digest, "size": i.size, "executable": i.executable} for i in request.inputs
        ),
        provenance=plain(request.provenance),
        resume=isinstance(request, runs_pb2.CreateRunRequest) and request.resume,
        validate_only=request.validate_only,
    )


def importing(request: runs_pb2.ImportRunRequest) -> Import:
    """A training that ran elsewhere."""
    _few(request.checkpoints, MAX_IMPORTED, "checkpoints")
    found = sorted((_imported(each, request.validate_only) for each in request.checkpoints), key=lambda c: c.step)
    if len({each.step for each in found}) != len(found) or not found:
        raise InvalidRequest("at least one checkpoint is imported, and of each step only one")
    if request.curve_digest and not DIGEST_PATTERN.match(request.curve_digest):
        raise InvalidRequest("curve_digest is not a digest like sha256:<64 hex digits>")
    return Import(
        submission=submission(request),
        checkpoints=tuple(found),
        curve_digest=request.curve_digest,
        origin=_text(request.origin, "an origin"),
    )


def _imported(message: runs_pb2.ImportedCheckpoint, unread: bool) -> ImportedCheckpoint:
    """One of its checkpoints; its manifest may be `unread` yet."""
    _few(message.metrics, MAX_METRICS, "metrics")
    if not DIGEST_PATTERN.match(message.manifest_digest) and (message.manifest_digest or not unread):
        raise InvalidRequest(f"manifest_digest of step {message.step} is not a digest like sha256:<64 hex digits>")
    if not 0 <= message.step < MAX_STEP or min(message.size, message.files) < 0:
        raise InvalidRequest("step, size and files are not negative")
    return ImportedCheckpoint(
        step=message.step,
        metrics=_finite(message.metrics),
        manifest_digest=message.manifest_digest,
        size=message.size,
        files=message.files,
        time=moment(message.time).timestamp() if message.HasField("time") else None,
    )


def words(text: str) -> str:
    """What a person gives as a reason."""
    return _text(text, "a reason")


def moment(message: timestamp_pb2.Timestamp) -> datetime:
    """A time that was asked for."""
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("a timestamp is out of range") from error


# What both directions of rendering share


def timestamp(value: datetime | float | None) -> timestamp_pb2.Timestamp | None:
    """A moment; None stays unset."""
    if value is None:
        return None
    found = timestamp_pb2.Timestamp()
    found.FromNanoseconds(round((value.timestamp() if isinstance(value, datetime) else value) * 1_000_000) * 1000)
    return found


def duration(seconds: float) -> duration_pb2.Duration:
    """A stretch of time."""
    found = duration_pb2.Duration()
    found.FromNanoseconds(round(seconds * 1_000_000_000))
    return found


def struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain values as a Struct."""
    return ParseDict(dict(values), struct_pb2.Struct())


def error_status(error: Mapping[str, Any] | None) -> status_pb2.Status | None:
    """A stored error as it travels; None stays unset."""
    if not error:
        return None
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=error.get("reason", ""), domain=DOMAIN))
    return status_pb2.Status(code=error.get("code") or 2, message=error.get("message", ""), details=[packed])


def inputs(entries: Iterable[Mapping[str, Any]]) -> list[runs_pb2.Input]:
    """Files that travel."""
    return [runs_pb2.Input(**entry) for entry in entries]


def capability(stored: Mapping[str, Any]) -> fleet_pb2.Capability:
    """What a host has."""
    return ParseDict(dict(stored), fleet_pb2.Capability(), ignore_unknown_fields=True)


def readings(stored: Mapping[str, Any]) -> fleet_pb2.Readings:
    """A host's load."""
    return ParseDict(dict(stored), fleet_pb2.Readings(), ignore_unknown_fields=True)
