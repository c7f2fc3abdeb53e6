"""Parses the contract's messages into the coordinator's values.

Requests are checked here, before the database is accessed: names, ids, counts, and bytes that Postgres cannot store.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf import timestamp_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from coordinator.lifecycle import Cause, Outcome
from coordinator.values import (
    Completion,
    Copy,
    Cursor,
    Heartbeat,
    HeldPlace,
    Hello,
    ImportedCheckpoint,
    ImportRequest,
    NewCheckpoint,
    Readiness,
    Skipped,
    Submission,
)
from relay.errors import InvalidRequest, TooLarge
from relay.v1 import agents_pb2, runs_pb2
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


def parse_run_id(name: str) -> str:
    """Return the id in `runs/{run}`."""
    return _checked_name(name, "runs/")


def parse_agent_name(name: str) -> str:
    """Return the name in `agents/{agent}`."""
    return _checked_name(name, "agents/")


def _checked_name(name: str, prefix: str) -> str:
    rest = name.removeprefix(prefix)
    if not name.startswith(prefix) or not _NAME.fullmatch(rest):
        kind = prefix.rstrip("s/")
        raise InvalidRequest(
            f"{rest[:200]!r} names no {kind}: {prefix}NAME, of small letters, digits, '.', '_' and '-', at most 128"
        )
    return rest


def parse_lease_id(name: str) -> UUID:
    """Return the id in `runs/{run}/leases/{lease}`."""
    return _checked_id(name, "leases")


def parse_checkpoint_id(name: str) -> UUID:
    """Return the id in `runs/{run}/checkpoints/{checkpoint}`."""
    return _checked_id(name, "checkpoints")


def _checked_id(name: str, kind: str) -> UUID:
    match name.split("/"):
        case ["runs", run, found, text] if found == kind and _NAME.fullmatch(run):
            try:
                return UUID(text)
            except ValueError:
                pass
    raise InvalidRequest(f"{name[:300]!r} is not a name like runs/some-run/{kind}/<id>")


# Requests


def to_json_values(message: Message) -> dict[str, Any]:
    """Return a message as JSON values to store; 64-bit numbers become text. InvalidRequest when Postgres cannot store
    it.
    """
    values = MessageToDict(message, preserving_proto_field_name=True)
    if "\\u0000" in json.dumps(values):
        raise InvalidRequest("a text holds a NUL character")
    return values


def _check_text(value: str, what: str, limit: int = 4096) -> str:
    if "\0" in value or len(value) > limit:
        raise InvalidRequest(f"{what} holds a NUL character or is longer than {limit}")
    return value


def _check_count(items: Sized, limit: int, what: str) -> None:
    if len(items) > limit:
        raise TooLarge(f"{len(items)} {what}; the limit is {limit}")


def parse_hello(message: agents_pb2.Hello) -> Hello:
    """Parse the first message of a session."""
    gpus = [gpu.index for gpu in message.capability.gpus]
    if len(set(gpus)) != len(gpus) or any(not 0 <= index < 1024 for index in gpus):
        raise InvalidRequest("GPUs must have distinct indices below 1024")
    if not 0 <= message.capability.slots <= 1024:
        raise InvalidRequest("a host must have at most 1024 slots")
    if not message.instance_id or not message.boot_id:
        raise InvalidRequest("a hello must name its instance and its boot")
    labels = {
        _check_text(key, "a label", 256): _check_text(value, "a label", 256) for key, value in message.labels.items()
    }
    return Hello(
        agent=parse_agent_name(message.agent),
        instance_id=_check_text(message.instance_id, "instance_id", 256),
        boot_id=_check_text(message.boot_id, "boot_id", 256),
        deployment_id=message.deployment_id,
        capability=to_json_values(message.capability),
        labels=labels,
        slots=tuple(gpus) or tuple(range(max(1, message.capability.slots))),
        held=parse_held(message.held),
        readiness=parse_readiness(message.readiness),
        dial=message.dial,
    )


def parse_held(items: Sequence[agents_pb2.HeldLease]) -> tuple[HeldPlace, ...]:
    """Parse the places that an agent lists, each once."""
    _check_count(items, MAX_HELD, "held leases")
    phases = agents_pb2.HeldLease.Phase
    found: dict[tuple[UUID, int], HeldPlace] = {}
    for item in items:
        lease, phase = (
            parse_lease_id(item.lease),
            phases.Name(item.phase) if item.phase in phases.values() else "RUNNING",
        )
        _check_count(item.slots, 1024, "slots")
        slots = tuple(slot for slot in item.slots if 0 <= slot < 2**31)
        found[lease, item.node] = HeldPlace(lease, item.node, phase.lower(), slots)
    return tuple(found.values())


def parse_readiness(message: agents_pb2.Readiness) -> Readiness:
    """Parse whether an agent accepts work."""
    return Readiness(message.ready, _check_text(message.reason, "a reason"), message.leaving)


def parse_heartbeat(agent: str, session_id: UUID, message: agents_pb2.Heartbeat) -> Heartbeat:
    """Parse a heartbeat of a session."""
    readings = to_json_values(message.readings) if message.HasField("readings") else None
    return Heartbeat(
        agent=agent,
        session_id=session_id,
        held=parse_held(message.held),
        readiness=parse_readiness(message.readiness),
        readings=readings,
    )


def parse_cursors(items: Sequence[agents_pb2.Cursor]) -> tuple[Cursor, ...]:
    """Parse byte offsets of sources."""
    _check_count(items, 4096, "cursors")
    for item in items:
        if item.source not in SOURCES or not 0 <= item.offset < MAX_STEP or item.node < 0:
            raise InvalidRequest(f"{item.source[:40]!r} at {item.offset} is not a cursor")
    return tuple(Cursor(item.node, item.source, item.offset) for item in items)


def parse_skipped(items: Sequence[runs_pb2.SkippedCheckpoint]) -> tuple[Skipped, ...]:
    """Parse checkpoints that could not be used."""
    _check_count(items, 1000, "skipped checkpoints")
    return tuple(Skipped(parse_checkpoint_id(i.checkpoint), i.step, _check_text(i.reason, "a reason")) for i in items)


def parse_copy(message: runs_pb2.Copy) -> Copy:
    """Parse a copy of a checkpoint's part."""
    if not _COPY.fullmatch(message.uri) or not message.uri.startswith(f"{message.store}://"):
        raise InvalidRequest(f"{message.uri[:200]!r} is not where a copy in {message.store[:40]!r} can be")
    return Copy(store=message.store, uri=message.uri)


def parse_session_id(text: str) -> UUID:
    """Parse the id of an agent's session."""
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidRequest(f"{text[:100]!r} is not a session's id") from error


def parse_removals(items: Sequence[agents_pb2.Removal]) -> list[tuple[UUID, int, str]]:
    """Parse copies that have been deleted, as (checkpoint, node, uri)."""
    _check_count(items, 1000, "removals")
    return [(parse_checkpoint_id(item.checkpoint), item.node, parse_copy(item.copy).uri) for item in items]


def parse_sealed(items: Sequence[agents_pb2.SealedCheckpoint]) -> dict[tuple[UUID, int], agents_pb2.SealedCheckpoint]:
    """Parse checkpoints on a host's disk, by (lease, step)."""
    _check_count(items, 1000, "sealed checkpoints")
    if any(not 0 <= item.step < MAX_STEP for item in items):
        raise InvalidRequest("a step must not be negative")
    return {(parse_lease_id(item.lease), item.step): item for item in items}


def parse_new_checkpoint(request: agents_pb2.RegisterCheckpointRequest) -> NewCheckpoint:
    """Parse one node's part of a checkpoint."""
    _check_count(request.metrics, MAX_METRICS, "metrics")
    if not DIGEST_PATTERN.match(request.manifest_digest):
        raise InvalidRequest("manifest_digest is not a digest like sha256:<64 hex digits>")
    if not 0 <= request.step < MAX_STEP or min(request.size, request.files) < 0:
        raise InvalidRequest("step, size and files must not be negative")
    return NewCheckpoint(
        node=request.node,
        step=request.step,
        manifest_digest=request.manifest_digest,
        size=request.size,
        files=request.files,
        metrics=_keep_finite(request.metrics),
        required_cursors=parse_cursors(request.required_cursors),
        copies=tuple(parse_copy(item) for item in request.copies),
        evaluation_due=request.evaluation_due,
    )


def _keep_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics: JSON has no NaN, such a value ranks no checkpoint, and the curve has it anyway."""
    return {_check_text(name, "a metric's name", 256): value for name, value in metrics.items() if value - value == 0.0}


def parse_completion(request: agents_pb2.CompleteLeaseRequest) -> Completion:
    """Parse how an attempt ended."""
    step = request.registered_step if request.HasField("registered_step") else None
    return replace(_parse_outcome(request), registered_step=step)


def _parse_outcome(request: agents_pb2.CompleteLeaseRequest) -> Completion:
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    final = parse_cursors(request.final_cursors)
    match request.WhichOneof("outcome"):
        case "succeeded":
            message = request.succeeded
            found = parse_output(message.output) if message.HasField("output") else None
            return Completion(
                node=request.node, outcome=Outcome.SUCCEEDED, digest=digest, output=found, final_cursors=final
            )
        case "stopped":
            return Completion(
                node=request.node,
                outcome=Outcome.STOPPED,
                digest=digest,
                cause=_parse_cause(request.stopped),
                final_cursors=final,
            )
        case "failed":
            error = {**parse_failure(request.failed.error), "last_lines": _clean_output(request.failed.last_lines)}
            return Completion(
                node=request.node,
                outcome=Outcome.FAILED,
                digest=digest,
                error=error,
                permanent=request.failed.permanent,
                final_cursors=final,
            )
        case "faulted":
            error = parse_failure(request.faulted.error)
            return Completion(node=request.node, outcome=Outcome.FAULTED, digest=digest, error=error)
    raise InvalidRequest("a completion must say how the attempt ended")


def _parse_cause(message: agents_pb2.Stopped) -> Cause:
    stopped = agents_pb2.Stopped
    return {stopped.LEAVING: Cause.LEAVING, stopped.TRUST_LOST: Cause.TRUST_LOST}.get(message.cause, Cause.REQUESTED)


def parse_output(message: runs_pb2.Output) -> dict[str, Any]:
    """Parse a published result."""
    if not DIGEST_PATTERN.match(message.manifest_digest):
        raise InvalidRequest("manifest_digest is not a digest like sha256:<64 hex digits>")
    found = {"manifest_digest": message.manifest_digest, "files": message.files, "size": message.size}
    return found | ({"uri": _check_text(message.uri, "a result's uri")} if message.uri else {})


def parse_failure(message: status_pb2.Status) -> dict[str, Any]:
    """Parse what failed into the form that is stored: {code, reason, message}."""
    reason = ""
    for detail in message.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            reason = info.reason
    return {"code": message.code, "reason": _clean_output(reason), "message": _clean_output(message.message)}


def _clean_output(text: str, limit: int = 16_384) -> str:
    """Return the output of a failing program unchanged, except for its length and for what Postgres cannot store."""
    return text.replace("\0", "�")[-limit:]


def parse_submission(request: runs_pb2.CreateRunRequest | runs_pb2.ImportRunRequest) -> Submission:
    """Parse a run to create."""
    if request.run_id and not _NAME.fullmatch(request.run_id):
        raise InvalidRequest(f"{request.run_id[:200]!r} is not a run id: small letters, digits, '.', '_' and '-'")
    _check_count(request.inputs, MAX_LISTED, "inputs")
    return Submission(
        run_id=request.run_id,
        request_id=_check_text(request.request_id, "request_id", 256),
        spec=to_json_values(request.spec),
        inputs=tuple(
            {"path": i.path, "digest": i.digest, "size": i.size, "executable": i.executable} for i in request.inputs
        ),
        provenance=to_json_values(request.provenance),
        resume=isinstance(request, runs_pb2.CreateRunRequest) and request.resume,
        validate_only=request.validate_only,
    )


def parse_import(request: runs_pb2.ImportRunRequest) -> ImportRequest:
    """Parse a training that ran elsewhere."""
    _check_count(request.checkpoints, MAX_IMPORTED, "checkpoints")
    found = sorted((_parse_imported(each, request.validate_only) for each in request.checkpoints), key=lambda c: c.step)
    if len({each.step for each in found}) != len(found) or not found:
        raise InvalidRequest("an import must have at least one checkpoint, and only one of each step")
    if request.curve_digest and not DIGEST_PATTERN.match(request.curve_digest):
        raise InvalidRequest("curve_digest is not a digest like sha256:<64 hex digits>")
    return ImportRequest(
        submission=parse_submission(request),
        checkpoints=tuple(found),
        curve_digest=request.curve_digest,
        origin=_check_text(request.origin, "an origin"),
    )


def _parse_imported(message: runs_pb2.ImportedCheckpoint, unread: bool) -> ImportedCheckpoint:
    """Parse one checkpoint of an import; with `unread` its manifest's digest may be missing."""
    _check_count(message.metrics, MAX_METRICS, "metrics")
    if not DIGEST_PATTERN.match(message.manifest_digest) and (message.manifest_digest or not unread):
        raise InvalidRequest(f"manifest_digest of step {message.step} is not a digest like sha256:<64 hex digits>")
    if not 0 <= message.step < MAX_STEP or min(message.size, message.files) < 0:
        raise InvalidRequest("step, size and files must not be negative")
    return ImportedCheckpoint(
        step=message.step,
        metrics=_keep_finite(message.metrics),
        manifest_digest=message.manifest_digest,
        size=message.size,
        files=message.files,
        time=parse_time(message.time).timestamp() if message.HasField("time") else None,
    )


def parse_reason(text: str) -> str:
    """Parse the reason that a user gives."""
    return _check_text(text, "a reason")


def parse_time(message: timestamp_pb2.Timestamp) -> datetime:
    """Parse a time."""
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("a timestamp is out of range") from error
