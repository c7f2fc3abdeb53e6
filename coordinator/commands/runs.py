"""What users do with runs: submit them once, and then request that they pause, continue or end."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import asyncpg

import runfile
from coordinator import scheduling
from coordinator.commands import initial_weights, run_dependencies
from coordinator.commands.initial_weights import InitialWeights
from coordinator.database.connections import Database
from coordinator.lifecycle import Cancel, Event, IllegalTransition, Pause, Phase, Requeue, Resume
from coordinator.store import history, planning, requests, runs
from coordinator.store.runs import RunDefinition
from coordinator.values import Submission
from relay.errors import (
    IllegalVerb,
    InputMissing,
    InvalidRequest,
    RelayError,
    RunEnded,
    RunExists,
    SpecInvalid,
)
from storage.manifest import DIGEST_PATTERN, ManifestError, check_path
from storage.threads import in_thread

MAX_INPUTS = 10_000
_OVER = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


class BlobState(Protocol):
    """Whether a blob is complete."""

    @property
    def digest(self) -> str: ...

    @property
    def complete(self) -> bool: ...


class BlobSource(Protocol):
    """The artifact store, as far as it is needed here. Blocking."""

    def stats(self, digests: Sequence[str], /) -> Sequence[BlobState]: ...

    def read(self, digest: str, limit: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class CheckedSubmission:
    """A submission whose run file is valid."""

    run_id: str
    definition: RunDefinition


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """The result of a submission, and where the run could be placed."""

    run_id: str
    definition: RunDefinition
    created: bool
    agents_ready: tuple[str, ...]
    placement: str


async def create(db: Database, blobs: BlobSource, submission: Submission, ttl: float) -> CreatedRun:
    """Create a run, once: the same request has the same answer, also when the first answer was lost (S9)."""
    checked = await in_thread(parse_submission, submission)
    await check_inputs(blobs, submission.inputs)
    checked = await resolve_beginning(db, blobs, submission, checked)
    created = False
    run_id = checked.run_id
    if not submission.validate_only:
        async with db.transaction() as conn:
            run_id, created = await _carry_out(conn, submission, checked)
    return await describe_creation(db, checked, run_id, created, ttl)


async def describe_creation(
    db: Database, checked: CheckedSubmission, run_id: str, created: bool, ttl: float
) -> CreatedRun:
    """Return the result of a submission, with where the run could be placed."""
    async with db.connection() as conn:
        need, fleet = planning.parse_need(checked.definition.spec), await planning.read_fleet(conn, ttl)
    ready = tuple(host.name for host in scheduling.find_candidates(need, fleet))
    placement = (
        _describe_wait(checked.definition)
        if checked.definition.waits_for
        else scheduling.explain_placement(need, fleet)
    )
    return CreatedRun(run_id, checked.definition, created, ready, placement)


def _describe_wait(definition: RunDefinition) -> str:
    return f"waits until runs/{definition.waits_for} has succeeded"


def parse_submission(submission: Submission) -> CheckedSubmission:
    """Parse the run file of a submission; SpecInvalid names every mistake in it."""
    try:
        parsed = runfile.parse_run_file(submission.spec)
    except runfile.RunFileErrors as wrong:
        raise SpecInvalid(str(wrong)) from wrong
    run_id = submission.run_id or parsed.name or f"{parsed.method}-{secrets.token_hex(4)}"
    spec = parsed.to_dict()
    requested = {"run": submission.run_id, "spec": spec, "inputs": list(submission.inputs)}
    digest = hashlib.sha256(json.dumps(requested, sort_keys=True).encode()).hexdigest()
    return CheckedSubmission(run_id, RunDefinition(spec, submission.inputs, digest))


async def resolve_beginning(
    db: Database, blobs: BlobSource, submission: Submission, checked: CheckedSubmission
) -> CheckedSubmission:
    """Add the weights of another run that the run file asks for, or the run that has to succeed first.

    A request that has been carried out already is returned unchanged.
    """
    definition = checked.definition
    what = initial_weights.requested(definition.spec)
    if not what and not definition.spec.get("after"):
        return checked
    if submission.request_id:
        async with db.connection() as conn:
            if await requests.is_known(conn, submission.request_id):
                return checked
    if what:  # requested now, also where they are looked up later
        initial_weights.require_room(what, submission.inputs)
    if submission.resume and what and (had := await initial_weights.find_earlier_weights(db, what, checked.run_id)):
        return _add_weights(checked, had)
    if awaited := await run_dependencies.find_awaited(db, definition.spec, checked.run_id):
        return CheckedSubmission(checked.run_id, replace(definition, waits_for=awaited))
    if not what:
        return checked
    weights = await initial_weights.resolve_weights(db, blobs, what, submission.inputs)
    await check_inputs(blobs, weights.inputs)
    return _add_weights(checked, weights)


def _add_weights(checked: CheckedSubmission, weights: InitialWeights) -> CheckedSubmission:
    definition = checked.definition
    return CheckedSubmission(
        checked.run_id, replace(definition, inputs=(*definition.inputs, *weights.inputs), pins=weights.pins)
    )


async def check_inputs(blobs: BlobSource, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Check that every input has a valid path and that its content is in the artifact store."""
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequest(f"{len(inputs)} inputs; a run must have at most {MAX_INPUTS}")
    for entry in inputs:
        try:
            check_path(entry["path"])
        except ManifestError as wrong:
            raise InvalidRequest(str(wrong)) from wrong
        if not DIGEST_PATTERN.match(entry["digest"]):
            raise InvalidRequest(f"{entry['path']}: {entry['digest']!r} is not a digest like sha256:<64 hex digits>")
    await in_thread(require_complete, blobs, {entry["digest"]: entry["path"] for entry in inputs})


def require_complete(blobs: BlobSource, wanted: Mapping[str, str]) -> None:
    """Raise InputMissing, naming those of `wanted` (names by digest) that the artifact store does not have. Blocking.

    The store keeps the rest for the collector's grace.
    """
    if missing := sorted(wanted[stat.digest] for stat in blobs.stats(list(wanted)) if not stat.complete):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputMissing(f"not in the artifact store: {', '.join(missing[:5])}{more}")


async def _carry_out(conn: asyncpg.Connection, submission: Submission, checked: CheckedSubmission) -> tuple[str, bool]:
    """Return the run of a submission, and whether this transaction created it."""
    if submission.request_id:
        known = await requests.claim(conn, submission.request_id, checked.run_id, checked.definition.digest)
        if known is not None:
            return known, False
    if await _insert(conn, submission, checked):
        return checked.run_id, True
    if not submission.resume:
        raise RunExists(f"there is a run {checked.run_id} already", run=checked.run_id)
    await _requeue(conn, submission, checked)
    return checked.run_id, False


async def _insert(conn: asyncpg.Connection, submission: Submission, checked: CheckedSubmission) -> bool:
    """Insert the run; return False when a run of this id exists."""
    run_id = checked.run_id
    if not await runs.add(conn, run_id, checked.definition, submission.provenance):
        return False
    await history.record(conn, run_id, "created", "submitted", details=dict(submission.provenance), state="queued")
    if checked.definition.waits_for:
        await planning.record_explanations(conn, {run_id: _describe_wait(checked.definition)})
    await planning.wake(conn)
    return True


async def _requeue(conn: asyncpg.Connection, submission: Submission, checked: CheckedSubmission) -> None:
    """Queue a run that is over again, from its head; what it is to do may have been changed."""
    run = await runs.lock(conn, checked.run_id)
    if run.request_digest != checked.definition.digest:
        if run.status.phase not in (*_OVER, Phase.PAUSED):
            raise RunExists(f"run {run.id} is {run.status.phase}, with another spec", run=run.id)
        await runs.redefine(conn, run.id, checked.definition)
    try:
        change = await runs.apply(conn, run, Requeue())
    except IllegalTransition as illegal:
        raise _refuse_verb(run.id, illegal, "queued again") from None
    if change.status != run.status:
        state = change.status.state.value
        await history.record(conn, run.id, "state", "queued again from its head", state=state)


async def cancel(db: Database, run_id: str, reason: str) -> None:
    """Request that the run end."""
    await _set_wanted(db, run_id, Cancel(), "cancelled", reason)


async def pause(db: Database, run_id: str, reason: str) -> None:
    """Request that the run pause."""
    await _set_wanted(db, run_id, Pause(), "paused", reason)


async def resume(db: Database, run_id: str) -> None:
    """Request that a paused run continue."""
    await _set_wanted(db, run_id, Resume(), "resumed", "")


async def _set_wanted(db: Database, run_id: str, event: Event, verb: str, reason: str) -> None:
    async with db.transaction() as conn:
        run = await runs.lock(conn, run_id)
        text = f"{verb} by a user" + (f": {reason}" if reason else "")
        try:
            change = await runs.apply(conn, run, event, reason=text)
        except IllegalTransition as illegal:
            raise _refuse_verb(run_id, illegal, verb) from None
        if change.status != run.status:
            await history.record(conn, run_id, "wanted", text, details={"verb": verb}, state=change.status.state.value)


def _refuse_verb(run_id: str, illegal: IllegalTransition, verb: str) -> RelayError:
    error = RunEnded if illegal.phase in _OVER else IllegalVerb
    verb_of_state = {"succeeded": "has ", "failed": "has ", "cancelled": "was "}.get(illegal.phase.value, "is ")
    text = f"run {run_id} {verb_of_state}{illegal.phase}: it cannot be {verb}"
    return error(text, state=illegal.phase.value)
