"""The coordinator's values as the contract's messages; `wire` is the other direction."""

from __future__ import annotations

import json
from typing import Any, cast
from uuid import UUID

from coordinator.lifecycle import Policy, RunState
from coordinator.retention import Decision
from coordinator.rpc import requests
from coordinator.sessions import Told, Waiting, Welcomed
from coordinator.store.planning import host, trouble
from coordinator.store.queries import AgentView, AttemptView, RunView
from coordinator.store.runs import Order
from coordinator.values import Assignment, CheckpointView, DesiredLease, LeaseRecord, Removal
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2, fleet_pb2, runs_pb2

STOP_GRACE = 60.0  #: seconds that a trainer has to save before it is killed

_STOPS = {
    "preempt": agents_pb2.DesiredLease.PREEMPT,
    "pause": agents_pb2.DesiredLease.PAUSE,
    "cancel": agents_pb2.DesiredLease.CANCEL,
}


def run_state(state: str) -> runs_pb2.Run.State.ValueType:
    """A run's state."""
    return runs_pb2.Run.State.Value(RunState(state).name)


def run(view: RunView, head: CheckpointView | None, *, whole: bool = True) -> runs_pb2.Run:
    """A run; not `whole` leaves out what is large."""
    row = view.run
    message = runs_pb2.Run(
        name=f"runs/{row.id}",
        state=run_state(row.state),
        wanted=runs_pb2.Run.Wanted.Value(row.wanted.upper()),
        labels=row.labels,
        priority=row.priority,
        create_time=requests.timestamp(row.create_time),
        update_time=requests.timestamp(row.update_time),
        end_time=requests.timestamp(row.end_time),
        eligible_time=requests.timestamp(row.eligible_time),
        failures=row.failures,
        faults=row.faults,
        attempts=row.attempts,
        attempt=attempt(view.attempt) if view.attempt else None,
        head=checkpoint(head) if head else None,
        progress=runs_pb2.Progress(
            step=row.step,
            total=row.total,
            epoch=row.epoch,
            metrics={name: float(value) for name, value in row.metrics.items()},
            time=requests.timestamp(row.progress_time),
        ),
        error=requests.error_status(row.error),
        reason=row.reason,
        pins=row.pins,
        output=runs_pb2.Output(**row.output) if row.output else None,
    )
    if whole:
        message.spec.CopyFrom(requests.struct(row.spec))
        message.provenance.CopyFrom(runs_pb2.Provenance(**row.provenance))
        message.inputs.extend(requests.inputs(cast("list[dict[str, Any]]", row.inputs)))
    return message


def planned(run_id: str, order: Order) -> runs_pb2.Run:
    """A run as it would be."""
    return runs_pb2.Run(
        name=f"runs/{run_id}", spec=requests.struct(order.spec), inputs=requests.inputs(order.inputs), pins=order.pins
    )


def attempt(view: AttemptView) -> runs_pb2.Attempt:
    """A lease, as people see it."""
    row = view.lease
    wished = f"asked to stop: {row.stop_reason}" if row.stop_reason and not row.end_time else ""
    return runs_pb2.Attempt(
        name=requests.lease_name(row.run_id, row.id),
        number=row.attempt,
        state=runs_pb2.Attempt.State.Value(row.state.upper()),
        outcome=runs_pb2.Attempt.Outcome.Value(row.outcome.upper() if row.outcome else "OUTCOME_UNSPECIFIED"),
        reason=row.reason or wished,
        error=requests.error_status(row.error),
        places=[runs_pb2.Place(node=p.node, agent=f"agents/{p.agent}", slots=p.slots) for p in view.places],
        grant_time=requests.timestamp(row.grant_time),
        start_time=requests.timestamp(row.start_time),
        end_time=requests.timestamp(row.end_time),
        resumed_from=requests.checkpoint_name(row.run_id, row.resumed_from) if row.resumed_from else "",
        resumed_step=row.resumed_step,
        skipped=[
            runs_pb2.SkippedCheckpoint(
                checkpoint=f"runs/{row.run_id}/checkpoints/{s['checkpoint']}", step=s["step"], reason=s["reason"]
            )
            for s in cast("list[dict[str, Any]]", row.skipped)
        ],
        kept_until_step=row.kept_until_step,
    )


def checkpoint(view: CheckpointView) -> runs_pb2.Checkpoint:
    """A checkpoint with its parts and copies."""
    return runs_pb2.Checkpoint(
        name=requests.checkpoint_name(view.run_id, view.id),
        lease=requests.lease_name(view.run_id, view.lease_id),
        attempt=view.attempt,
        step=view.step,
        metrics=view.metrics,
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
                        create_time=requests.timestamp(copy.create_time),
                        remove_time=requests.timestamp(copy.remove_time),
                    )
                    for copy in part.copies
                ],
            )
            for part in view.parts
        ],
        complete=view.complete,
        superseded=view.superseded,
        head=view.head,
        create_time=requests.timestamp(view.create_time),
        pinned=view.pinned,
        pin_reason=view.pin_reason,
        remove_time=requests.timestamp(view.remove_time),
        remove_reason=view.remove_reason,
    )


def judged(view: CheckpointView, decision: Decision[UUID]) -> runs_pb2.Checkpoint:
    """A checkpoint, and why it stays or goes."""
    message = checkpoint(view)
    message.keep_reasons.extend(decision.stays.get(view.id, ()))
    message.remove_reason = view.remove_reason or decision.goes.get(view.id, "")
    return message


def removal(item: Removal) -> agents_pb2.Removal:
    """A copy that is to go."""
    return agents_pb2.Removal(
        checkpoint=requests.checkpoint_name(item.run_id, item.checkpoint_id),
        lease=requests.lease_name(item.run_id, item.lease_id),
        attempt=item.attempt,
        step=item.step,
        node=item.node,
        copy=runs_pb2.Copy(store=item.store, uri=item.uri),
    )


def welcome(session: Welcomed, timing: LeaseTiming) -> agents_pb2.SessionResponse:
    """The session is open."""
    message = agents_pb2.Welcome(
        session_id=str(session.session_id),
        deployment_id=str(session.deployment_id),
        ttl=requests.duration(timing.ttl),
        heartbeat_interval=requests.duration(timing.heartbeat),
        clock_rate_error=timing.rho,
        kill_time=requests.duration(timing.kill),
        margin=requests.duration(timing.margin),
        leases=[_record(record) for record in session.leases],
    )
    return agents_pb2.SessionResponse(welcome=message)


def _record(record: LeaseRecord) -> agents_pb2.LeaseRecord:
    return agents_pb2.LeaseRecord(
        lease=requests.lease_name(record.run_id, record.lease_id),
        cursors=[agents_pb2.Cursor(node=c.node, source=c.source, offset=c.offset) for c in record.cursors],
        checkpoints=[checkpoint(view) for view in record.checkpoints],
        started=record.started,
    )


def told(message: Told | Waiting) -> agents_pb2.SessionResponse:
    """A beat, or the news that there is none."""
    if isinstance(message, Waiting):
        wait = agents_pb2.Wait(heartbeat_sequence=message.sequence, reason=message.reason)
        return agents_pb2.SessionResponse(wait=wait)
    wish = message.wish
    beat = agents_pb2.HeartbeatReply(
        session_id=str(wish.session_id),
        desired_version=wish.version,
        heartbeat_sequence=message.sequence,
        leases=[_wished(lease) for lease in wish.leases],
    )
    return agents_pb2.SessionResponse(heartbeat_reply=beat)


def _wished(lease: DesiredLease) -> agents_pb2.DesiredLease:
    return agents_pb2.DesiredLease(
        lease=requests.lease_name(lease.run_id, lease.lease_id),
        action=agents_pb2.DesiredLease.STOP if lease.stop else agents_pb2.DesiredLease.RUN,
        reason=_STOPS[lease.stop] if lease.stop else agents_pb2.DesiredLease.STOP_REASON_UNSPECIFIED,
        grace=requests.duration(STOP_GRACE) if lease.stop else None,
        assignment=_assignment(lease, lease.assignment) if lease.assignment else None,
    )


def _assignment(lease: DesiredLease, assignment: Assignment) -> agents_pb2.Assignment:
    stops = lease.policy is Policy.STOP
    return agents_pb2.Assignment(
        run=f"runs/{lease.run_id}",
        attempt=lease.attempt,
        node=lease.node,
        places=[runs_pb2.Place(node=p.node, agent=f"agents/{p.agent}", slots=p.slots) for p in assignment.places],
        spec_json=json.dumps(assignment.spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        inputs=requests.inputs(assignment.inputs),
        pins=assignment.pins,
        checkpoints=[checkpoint(view) for view in assignment.checkpoints],
        on_disconnect=agents_pb2.STOP if stops else agents_pb2.CONTINUE,
        slots=lease.slots,
    )


def agent(view: AgentView, ttl: float) -> fleet_pb2.Agent:
    """A host, as operators see it."""
    row = view.agent
    quiet = row.heartbeat_time is None or (view.now - row.heartbeat_time).total_seconds() > ttl
    stored = {
        **{column: getattr(row, column) for column in _AGENT_COLUMNS},
        "quiet": quiet,
        "taken": [slot for place, _ in view.places for slot in place.slots],
    }
    why = trouble(stored)
    return fleet_pb2.Agent(
        name=f"agents/{row.name}",
        state=_agent_state(why),
        reason=why if why.startswith("is not ready") or not row.readiness_reason else row.readiness_reason,
        capability=requests.capability(row.capability),
        readings=requests.readings(row.readings),
        labels=row.labels,
        leases=[requests.lease_name(run_id, place.lease_id) for place, run_id in view.places],
        free_slots=host(stored).free,
        connect_time=requests.timestamp(row.connect_time),
        heartbeat_time=requests.timestamp(row.heartbeat_time),
    )


_AGENT_COLUMNS = (
    *("name", "slots", "held", "capability", "readings", "labels", "session_id", "disconnect_time", "leaving"),
    *("ready", "readiness_reason"),
)


def _agent_state(why: str) -> fleet_pb2.Agent.State.ValueType:
    state = fleet_pb2.Agent
    if not why:
        return state.READY
    return {"is unreachable": state.UNREACHABLE, "is leaving": state.LEAVING}.get(why, state.NOT_READY)
