"""Renders the coordinator's values as the contract's messages; `requests` is the other direction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from google.protobuf import any_pb2, duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2

from coordinator.lifecycle import Policy, RunState
from coordinator.retention import RetentionDecision
from coordinator.rpc.sessions import OpenSession, Reply, Wait
from coordinator.store.planning import HostState, build_capacity, determine_host_state, explain_unschedulable
from coordinator.store.queries import AgentView, AttemptView, RunView
from coordinator.store.runs import RunDefinition
from coordinator.values import Assignment, CheckpointView, DesiredLease, LeaseRecord, Removal
from relay.errors import DOMAIN
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2, fleet_pb2, runs_pb2

_STOPS = {
    "preempt": agents_pb2.DesiredLease.PREEMPT,
    "pause": agents_pb2.DesiredLease.PAUSE,
    "cancel": agents_pb2.DesiredLease.CANCEL,
}


def render_run_state(state: str) -> runs_pb2.Run.State.ValueType:
    """Render the state of a run."""
    return runs_pb2.Run.State.Value(RunState(state).name)


def render_run(view: RunView, head: CheckpointView | None, *, whole: bool = True) -> runs_pb2.Run:
    """Render a run; without `whole`, its large fields are left out."""
    row = view.run
    message = runs_pb2.Run(
        name=f"runs/{row.id}",
        state=render_run_state(row.state),
        wanted=runs_pb2.Run.Wanted.Value(row.wanted.upper()),
        labels=row.labels,
        priority=row.priority,
        create_time=render_timestamp(row.create_time),
        update_time=render_timestamp(row.update_time),
        end_time=render_timestamp(row.end_time),
        eligible_time=render_timestamp(row.eligible_time),
        failures=row.failures,
        faults=row.faults,
        attempts=row.attempts,
        attempt=render_attempt(view.attempt) if view.attempt else None,
        head=render_checkpoint(head) if head else None,
        progress=runs_pb2.Progress(
            step=row.step,
            total=row.total,
            epoch=row.epoch,
            metrics={name: float(value) for name, value in row.metrics.items()},
            time=render_timestamp(row.progress_time),
        ),
        error=render_error_status(row.error),
        reason=row.reason,
        pins=row.pins,
        output=runs_pb2.Output(**row.output) if row.output else None,
    )
    if whole:
        message.spec.CopyFrom(render_struct(row.spec))
        message.provenance.CopyFrom(runs_pb2.Provenance(**row.provenance))
        message.inputs.extend(render_inputs(cast("list[dict[str, Any]]", row.inputs)))
    return message


def render_planned_run(run_id: str, definition: RunDefinition) -> runs_pb2.Run:
    """Render a run as it would be created."""
    return runs_pb2.Run(
        name=f"runs/{run_id}",
        spec=render_struct(definition.spec),
        inputs=render_inputs(definition.inputs),
        pins=definition.pins,
    )


def render_attempt(view: AttemptView) -> runs_pb2.Attempt:
    """Render a lease as an attempt."""
    row = view.lease
    stopping = f"asked to stop: {row.stop_reason}" if row.stop_reason and not row.end_time else ""
    return runs_pb2.Attempt(
        name=format_lease_name(row.run_id, row.id),
        number=row.attempt,
        state=runs_pb2.Attempt.State.Value(row.state.upper()),
        outcome=runs_pb2.Attempt.Outcome.Value(row.outcome.upper() if row.outcome else "OUTCOME_UNSPECIFIED"),
        reason=row.reason or stopping,
        error=render_error_status(row.error),
        places=[runs_pb2.Place(node=p.node, agent=f"agents/{p.agent}", slots=p.slots) for p in view.places],
        grant_time=render_timestamp(row.grant_time),
        start_time=render_timestamp(row.start_time),
        end_time=render_timestamp(row.end_time),
        resumed_from=format_checkpoint_name(row.run_id, row.resumed_from) if row.resumed_from else "",
        resumed_step=row.resumed_step,
        skipped=[
            runs_pb2.SkippedCheckpoint(
                checkpoint=f"runs/{row.run_id}/checkpoints/{s['checkpoint']}", step=s["step"], reason=s["reason"]
            )
            for s in cast("list[dict[str, Any]]", row.skipped)
        ],
        kept_until_step=row.kept_until_step,
        fidelity=runs_pb2.Attempt.Fidelity.Value(row.fidelity.upper() if row.fidelity else "FIDELITY_UNSPECIFIED"),
        fidelity_reasons=cast("list[str]", row.fidelity_reasons),
    )


def render_checkpoint(view: CheckpointView) -> runs_pb2.Checkpoint:
    """Render a checkpoint with its parts and copies."""
    return runs_pb2.Checkpoint(
        name=format_checkpoint_name(view.run_id, view.id),
        lease=format_lease_name(view.run_id, view.lease_id),
        attempt=view.attempt,
        step=view.step,
        metrics=view.metrics,
        evaluation_due=view.evaluation_due,
        parts=[
            runs_pb2.CheckpointPart(
                node=part.node,
                manifest_digest=part.manifest_digest,
                size=part.size,
                files=part.files,
                copies=[
                    runs_pb2.Copy(
                        store=copy.store,
                        uri=copy.uri,
                        create_time=render_timestamp(copy.create_time),
                        remove_time=render_timestamp(copy.remove_time),
                    )
                    for copy in part.copies
                ],
            )
            for part in view.parts
        ],
        complete=view.complete,
        superseded=view.superseded,
        head=view.head,
        create_time=render_timestamp(view.create_time),
        pinned=view.pinned,
        pin_reason=view.pin_reason,
        remove_time=render_timestamp(view.remove_time),
        remove_reason=view.remove_reason,
    )


def render_checkpoint_with_decision(view: CheckpointView, decision: RetentionDecision[UUID]) -> runs_pb2.Checkpoint:
    """Render a checkpoint with the reasons why it is kept or scheduled for deletion."""
    message = render_checkpoint(view)
    message.keep_reasons.extend(decision.kept.get(view.id, ()))
    message.remove_reason = view.remove_reason or decision.deleted.get(view.id, "")
    return message


def render_removal(item: Removal) -> agents_pb2.Removal:
    """Render a copy that is scheduled for deletion."""
    return agents_pb2.Removal(
        checkpoint=format_checkpoint_name(item.run_id, item.checkpoint_id),
        lease=format_lease_name(item.run_id, item.lease_id),
        attempt=item.attempt,
        step=item.step,
        node=item.node,
        copy=runs_pb2.Copy(store=item.store, uri=item.uri),
    )


def render_welcome(session: OpenSession, timing: LeaseTiming) -> agents_pb2.SessionResponse:
    """Render the welcome of a session."""
    message = agents_pb2.Welcome(
        session_id=str(session.session_id),
        deployment_id=str(session.deployment_id),
        ttl=render_duration(timing.ttl),
        heartbeat_interval=render_duration(timing.heartbeat),
        clock_rate_error=timing.rho,
        kill_time=render_duration(timing.kill),
        margin=render_duration(timing.margin),
        leases=[_render_lease_record(record) for record in session.leases],
    )
    return agents_pb2.SessionResponse(welcome=message)


def _render_lease_record(record: LeaseRecord) -> agents_pb2.LeaseRecord:
    return agents_pb2.LeaseRecord(
        lease=format_lease_name(record.run_id, record.lease_id),
        cursors=[agents_pb2.Cursor(node=c.node, source=c.source, offset=c.offset) for c in record.cursors],
        checkpoints=[render_checkpoint(view) for view in record.checkpoints],
        started=record.started,
    )


def render_session_message(message: Reply | Wait) -> agents_pb2.SessionResponse:
    """Render a heartbeat reply or a wait."""
    if isinstance(message, Wait):
        wait = agents_pb2.Wait(heartbeat_sequence=message.sequence, reason=message.reason)
        return agents_pb2.SessionResponse(wait=wait)
    desired = message.desired
    reply = agents_pb2.HeartbeatReply(
        session_id=str(desired.session_id),
        desired_version=desired.version,
        heartbeat_sequence=message.sequence,
        leases=[_render_desired_lease(lease) for lease in desired.leases],
    )
    return agents_pb2.SessionResponse(heartbeat_reply=reply)


def _render_desired_lease(lease: DesiredLease) -> agents_pb2.DesiredLease:
    return agents_pb2.DesiredLease(
        lease=format_lease_name(lease.run_id, lease.lease_id),
        action=agents_pb2.DesiredLease.STOP if lease.stop else agents_pb2.DesiredLease.RUN,
        reason=_STOPS[lease.stop] if lease.stop else agents_pb2.DesiredLease.STOP_REASON_UNSPECIFIED,
        grace=render_duration(lease.grace) if lease.stop else None,
        assignment=_render_assignment(lease, lease.assignment) if lease.assignment else None,
    )


def _render_assignment(lease: DesiredLease, assignment: Assignment) -> agents_pb2.Assignment:
    stops = lease.policy is Policy.STOP
    return agents_pb2.Assignment(
        run=f"runs/{lease.run_id}",
        attempt=lease.attempt,
        node=lease.node,
        places=[runs_pb2.Place(node=p.node, agent=f"agents/{p.agent}", slots=p.slots) for p in assignment.places],
        spec_json=json.dumps(assignment.spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        inputs=render_inputs(assignment.inputs),
        pins=assignment.pins,
        checkpoints=[render_checkpoint(view) for view in assignment.checkpoints],
        on_disconnect=agents_pb2.STOP if stops else agents_pb2.CONTINUE,
        slots=lease.slots,
    )


def render_agent(view: AgentView, ttl: float) -> fleet_pb2.Agent:
    """Render a host as operators see it."""
    row = view.agent
    quiet = row.heartbeat_time is None or (view.now - row.heartbeat_time).total_seconds() > ttl
    stored = {
        **{column: getattr(row, column) for column in _AGENT_COLUMNS},
        "quiet": quiet,
        "taken": [slot for place, _ in view.places for slot in place.slots],
    }
    state, why = determine_host_state(stored), explain_unschedulable(stored)
    return fleet_pb2.Agent(
        name=f"agents/{row.name}",
        state=fleet_pb2.Agent.State.Value(state.name),
        reason=why if state is HostState.NOT_READY else row.readiness_reason or why,
        capability=render_capability(row.capability),
        readings=render_readings(row.readings),
        labels=row.labels,
        leases=[format_lease_name(run_id, place.lease_id) for place, run_id in view.places],
        free_slots=build_capacity(stored).free,
        connect_time=render_timestamp(row.connect_time),
        heartbeat_time=render_timestamp(row.heartbeat_time),
    )


_AGENT_COLUMNS = (
    *("name", "slots", "held", "capability", "readings", "labels", "session_id", "disconnect_time", "leaving"),
    *("ready", "readiness_reason"),
)


def format_lease_name(run: str, lease: UUID) -> str:
    """Return the resource name of a lease."""
    return f"runs/{run}/leases/{lease}"


def format_checkpoint_name(run: str, checkpoint: UUID) -> str:
    """Return the resource name of a checkpoint."""
    return f"runs/{run}/checkpoints/{checkpoint}"


def render_timestamp(value: datetime | float | None) -> timestamp_pb2.Timestamp | None:
    """Render a time; None stays unset."""
    if value is None:
        return None
    found = timestamp_pb2.Timestamp()
    found.FromNanoseconds(round((value.timestamp() if isinstance(value, datetime) else value) * 1_000_000) * 1000)
    return found


def render_duration(seconds: float) -> duration_pb2.Duration:
    """Render a duration in seconds."""
    found = duration_pb2.Duration()
    found.FromNanoseconds(round(seconds * 1_000_000_000))
    return found


def render_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Render JSON values as a Struct."""
    return ParseDict(dict(values), struct_pb2.Struct())


def render_error_status(error: Mapping[str, Any] | None) -> status_pb2.Status | None:
    """Render a stored error as a Status; None stays unset."""
    if not error:
        return None
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=error.get("reason", ""), domain=DOMAIN))
    return status_pb2.Status(code=error.get("code") or 2, message=error.get("message", ""), details=[packed])


def render_inputs(entries: Iterable[Mapping[str, Any]]) -> list[runs_pb2.Input]:
    """Render the files that were uploaded with a run."""
    return [runs_pb2.Input(**entry) for entry in entries]


def render_capability(stored: Mapping[str, Any]) -> fleet_pb2.Capability:
    """Render the hardware and software of a host."""
    return ParseDict(dict(stored), fleet_pb2.Capability(), ignore_unknown_fields=True)


def render_readings(stored: Mapping[str, Any]) -> fleet_pb2.Readings:
    """Render the load of a host."""
    return ParseDict(dict(stored), fleet_pb2.Readings(), ignore_unknown_fields=True)
