"""Imports a training that ran elsewhere as a run: one attempt that has ended, its checkpoints and its curve.

What agents write step by step, each time fenced by their lease, is written here in one transaction, under a lease that
no host ever held. The run passes through the same states as any other, from queued to paused, where it stays.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from coordinator import event_lines, retention
from coordinator.commands.retention import parse_policy
from coordinator.commands.runs import (
    BlobSource,
    CheckedSubmission,
    CreatedRun,
    check_inputs,
    describe_creation,
    parse_submission,
    require_complete,
    resolve_beginning,
)
from coordinator.database.connections import Database
from coordinator.lifecycle import Ended, Granted, HeadMoved, Outcome, Pause, RunState, Started
from coordinator.store import checkpoints, events, history, leases, planning, requests, runs
from coordinator.values import ImportedCheckpoint, ImportRequest
from relay.errors import BlobUnknown, InputMissing, InvalidRequest, RunExists
from storage.manifest import MAX_BYTES, Manifest, ManifestError
from storage.threads import in_thread

MAX_CURVE = 64 << 20  #: bytes of its event lines
ATTEMPT = 1
_POINTS = 10_000  # of one chunk of the curve
_RUNNING = RunState.RUNNING.value


@dataclass(slots=True)
class ImportedCurve:
    """The points of the event lines up to the head's step, each step of a metric once."""

    series: Mapping[str, event_lines.MetricSeries] = field(default_factory=dict)
    total: int | None = None
    epoch: float | None = None
    dropped: int = 0
    named: Sequence[str] = ()


async def create_imported(db: Database, blobs: BlobSource, wanted: ImportRequest, ttl: float) -> CreatedRun:
    """Create the run, once: the same import returns the same run, also under another request id."""
    checked = await in_thread(parse_submission, wanted.submission)
    await check_inputs(blobs, wanted.submission.inputs)
    checked = await resolve_beginning(db, blobs, wanted.submission, checked)
    run_id, created = checked.run_id, False
    if not wanted.submission.validate_only:
        await in_thread(_check_content, blobs, wanted.checkpoints)
        curve = await in_thread(_read_curve, blobs, wanted, time.time())
        async with db.transaction() as conn:
            run_id, created = await _carry_out(conn, wanted, checked, curve)
    return await describe_creation(db, checked, run_id, created, ttl)


def steps_to_remove(wanted: ImportRequest, spec: Mapping[str, Any]) -> list[int]:
    """Return the steps of the checkpoints that will be scheduled for deletion once the run continues."""
    now = time.time()
    found = [
        retention.CheckpointFacts(
            id=each.step,
            attempt=ATTEMPT,
            step=each.step,
            size=each.size,
            time=min(now if each.time is None else each.time, now),
            metrics=each.metrics,
            head=each is wanted.checkpoints[-1],
            beyond=True,
        )
        for each in wanted.checkpoints
    ]
    return sorted(retention.decide(parse_policy(spec), found, now).deleted)


def _check_content(blobs: BlobSource, found: Sequence[ImportedCheckpoint]) -> None:
    """Raise InputMissing unless every byte is in the artifact store, which then keeps it for the collector's grace.
    Blocking.
    """
    require_complete(blobs, {each.manifest_digest: f"the manifest of step {each.step}" for each in found})
    wanted: dict[str, str] = {}
    for each in found:
        for file in _read_manifest(blobs, each).files:
            wanted.setdefault(file.digest, f"{file.path} of step {each.step}")
    require_complete(blobs, wanted)


def _read_manifest(blobs: BlobSource, said: ImportedCheckpoint) -> Manifest:
    try:
        manifest = Manifest.from_bytes(blobs.read(said.manifest_digest, MAX_BYTES))
    except ManifestError as wrong:
        raise InvalidRequest(f"the manifest of step {said.step}: {wrong}") from wrong
    if (manifest.size, len(manifest.files)) != (said.size, said.files) or manifest.step not in (None, said.step):
        raise InvalidRequest(
            f"the manifest of step {said.step} names {len(manifest.files)} files of {manifest.size} bytes"
            f" of step {manifest.step}, and not {said.files} files of {said.size} bytes"
        )
    return manifest


def _read_curve(blobs: BlobSource, wanted: ImportRequest, now: float) -> ImportedCurve:
    """Read and parse the curve from the artifact store. Blocking."""
    if not wanted.curve_digest:
        return ImportedCurve()
    try:
        data = blobs.read(wanted.curve_digest, MAX_CURVE)
    except BlobUnknown:
        raise InputMissing("not in the artifact store: the curve") from None
    parsed = event_lines.parse_lines(data, 0, now=now, known=set())
    head = wanted.checkpoints[-1].step
    series = {metric: _keep_last_pass(points, head, now) for metric, points in parsed.series.items()}
    series = {metric: points for metric, points in series.items() if points.steps}
    return ImportedCurve(series, parsed.total, parsed.epoch, parsed.dropped, parsed.named)


def _keep_last_pass(points: event_lines.MetricSeries, head: int, now: float) -> event_lines.MetricSeries:
    """Return the points up to the head's step. Where the steps go back, the training was resumed, and later points
    replace those from there on.
    """
    kept = event_lines.MetricSeries()
    for step, value, at in zip(points.steps, points.values, points.times, strict=True):
        while kept.steps and kept.steps[-1] >= step:
            for column in (kept.steps, kept.values, kept.times):
                column.pop()
        if step <= head:
            kept.steps.append(step)
            kept.values.append(value)
            kept.times.append(min(at, now))
    return kept


async def _carry_out(
    conn: asyncpg.Connection, wanted: ImportRequest, checked: CheckedSubmission, curve: ImportedCurve
) -> tuple[str, bool]:
    """Return the run of an import, and whether this transaction created it."""
    asked, run_id = wanted.submission, checked.run_id
    if asked.request_id:
        known = await requests.claim(conn, asked.request_id, run_id, _digest(wanted, checked))
        if known is not None:
            return known, False
    if await runs.add(conn, run_id, checked.definition, asked.provenance):
        await _write_run(conn, wanted, checked, curve)
        return run_id, True
    await _check_same(conn, wanted, checked)
    return run_id, False


def _digest(wanted: ImportRequest, checked: CheckedSubmission) -> str:
    parts = [checked.definition.digest, wanted.curve_digest, *(each.manifest_digest for each in wanted.checkpoints)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def _check_same(conn: asyncpg.Connection, wanted: ImportRequest, checked: CheckedSubmission) -> None:
    """Raise RunExists unless the run of this id was created by the same import."""
    run = await runs.lock(conn, checked.run_id)
    if run.request_digest != checked.definition.digest:
        raise RunExists(f"there is a run {run.id} already, with another spec", run=run.id)
    theirs = await checkpoints.read_digests_by_step(conn, run.id, ATTEMPT)
    if theirs != {each.step: each.manifest_digest for each in wanted.checkpoints}:
        raise RunExists(f"there is a run {run.id} already, with other checkpoints", run=run.id)


async def _write_run(
    conn: asyncpg.Connection, wanted: ImportRequest, checked: CheckedSubmission, curve: ImportedCurve
) -> None:
    """Write the attempt, the checkpoints and the curve of the run. No other transaction sees the states in between."""
    run_id, imported = checked.run_id, f"imported from {wanted.origin}" if wanted.origin else "imported"
    provenance = dict(wanted.submission.provenance)
    await history.record(conn, run_id, "created", imported, details=provenance, state=RunState.QUEUED.value)
    lease_id = await _add_ended_lease(conn, checked, wanted.origin)
    ids = await checkpoints.add_imported(conn, run_id, lease_id, ATTEMPT, wanted.checkpoints)
    for checkpoint_id, each in zip(ids, wanted.checkpoints, strict=True):
        details = {"checkpoint": str(checkpoint_id), "step": each.step, "metrics": dict(each.metrics)}
        await _record(conn, run_id, lease_id, "checkpoint", f"step {each.step} is imported", details)
    await checkpoints.move_head(conn, run_id, ids[-1])
    await runs.apply(conn, await runs.lock(conn, run_id), HeadMoved())
    await _write_curve(conn, run_id, lease_id, wanted.checkpoints[-1].step, curve)
    await runs.apply(conn, await runs.lock(conn, run_id), Pause(), reason=imported)
    await runs.apply(conn, await runs.lock(conn, run_id), Ended(Outcome.STOPPED, reason=imported))


async def _add_ended_lease(conn: asyncpg.Connection, checked: CheckedSubmission, origin: str) -> UUID:
    """Add a lease that started from the beginning, without places, since no host held it."""
    run_id = checked.run_id
    await runs.apply(conn, await runs.lock(conn, run_id), Granted())
    lease_id = await leases.add(conn, run_id, ATTEMPT, planning.parse_policy(checked.definition.spec))
    await runs.count_attempt(conn, run_id, ATTEMPT)
    text = f"attempt {ATTEMPT} is what was trained elsewhere"
    await _record(conn, run_id, lease_id, "granted", text, {"imported": True, "origin": origin})
    await leases.start(conn, lease_id, None, 0, ())
    await runs.apply(conn, await runs.lock(conn, run_id), Started())
    details = {"checkpoint": "", "step": 0, "skipped": [], "superseded": 0}
    await _record(conn, run_id, lease_id, "started", "training began elsewhere", details)
    return lease_id


async def _write_curve(conn: asyncpg.Connection, run_id: str, lease_id: UUID, head: int, curve: ImportedCurve) -> None:
    """Write the curve in chunks that can be read one by one, and the run's progress."""
    writer = events.Writer(lease_id, run_id, ATTEMPT, _RUNNING, set(), {}, set(), True)
    await events.add_points(conn, [(writer, {metric: part}) for metric, part in _chunks(curve)])
    newest = {metric: points.values[-1] for metric, points in curve.series.items()}
    await events.record_progress(conn, {run_id: events.ProgressUpdate(head, curve.total, curve.epoch, newest)})
    if curve.dropped:
        what = "line or value" if curve.dropped == 1 else "lines or values"
        text = f"{curve.dropped} {what} of the curve dropped: {'; '.join(curve.named)}"
        details = {"dropped": curve.dropped, "first": list(curve.named)}
        await _record(conn, run_id, lease_id, "dropped", text, details, level="warning")


def _chunks(curve: ImportedCurve) -> Iterator[tuple[str, event_lines.MetricSeries]]:
    for metric, points in curve.series.items():
        for begin in range(0, len(points.steps), _POINTS):
            part = slice(begin, begin + _POINTS)
            yield metric, event_lines.MetricSeries(points.steps[part], points.values[part], points.times[part])


async def _record(
    conn: asyncpg.Connection,
    run_id: str,
    lease_id: UUID,
    kind: str,
    text: str,
    details: dict[str, Any],
    *,
    level: str = "info",
) -> None:
    await history.record(
        conn, run_id, kind, text, lease_id=lease_id, attempt=ATTEMPT, level=level, details=details, state=_RUNNING
    )
