"""Handles `after: runs/x`: a run that waits until another has succeeded, and then may start with that one's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.commands import initial_weights
from coordinator.commands.initial_weights import InitialWeights, ManifestReader
from coordinator.database.connections import Database
from coordinator.lifecycle import Cancel, RunState
from coordinator.store import history, planning, queries, runs
from coordinator.store.queries import DependentRun
from coordinator.store.runs import OVER, RunDefinition
from relay.errors import RunUnknown, SpecInvalid
from relay.logs import bind, get_logger
from storage.base import StoreUnavailable
from storage.checkpoint_ref import CheckpointRef

_log = get_logger(__name__)


async def find_awaited(db: Database, spec: Mapping[str, Any], run_id: str) -> str | None:
    """Return the run that a checked run file has to wait for, or None. SpecInvalid when it would wait forever."""
    if not (asked := spec.get("after")):
        return None
    name = CheckpointRef.parse(asked).run
    if name == run_id:
        raise SpecInvalid(f"after: {asked} is this run itself")
    async with db.begin() as connection:
        try:
            state = RunState((await queries.read_run(connection, name)).run.state)
        except RunUnknown as unknown:
            raise SpecInvalid(f"after: {unknown}") from unknown
    if state is RunState.SUCCEEDED:
        return None
    if state in OVER:
        raise SpecInvalid(f"after: {asked} has not succeeded, it is {state}")
    return name


async def release_dependents(db: Database, blobs: ManifestReader) -> None:
    """Release the runs whose awaited run has succeeded, and cancel those whose awaited run has not."""
    async with db.begin() as connection:
        waiting = await queries.list_released_dependents(connection)
    for dependent in waiting:
        with bind(run=dependent.run_id):
            await _release_or_cancel(db, blobs, dependent)


async def _release_or_cancel(db: Database, blobs: ManifestReader, dependent: DependentRun) -> None:
    if dependent.outcome is not RunState.SUCCEEDED:
        await _cancel(db, dependent, f"it was to come after runs/{dependent.awaited}, which is {dependent.outcome}")
        return
    try:
        weights = await _resolve_weights(db, blobs, dependent)
    except SpecInvalid as wrong:
        await _cancel(db, dependent, str(wrong))
    except (OSError, StoreUnavailable) as away:  # the store's folder or bucket; the next round tries again
        _log.error("run not released", awaited=dependent.awaited, reason=away)
    else:
        await _release(db, dependent, weights)


async def _resolve_weights(db: Database, blobs: ManifestReader, dependent: DependentRun) -> InitialWeights:
    asked = initial_weights.requested(dependent.spec)
    return await initial_weights.resolve_weights(db, blobs, asked, dependent.inputs) if asked else InitialWeights()


async def _release(db: Database, dependent: DependentRun, weights: InitialWeights) -> None:
    definition = RunDefinition(
        dependent.spec, (*dependent.inputs, *weights.inputs), dependent.request_digest, weights.pins, waits_for=None
    )
    async with db.transaction() as conn:
        run = await runs.lock(conn, dependent.run_id)
        if run.request_digest != dependent.request_digest or run.state is not RunState.QUEUED:
            return  # something else is asked of it meanwhile: the next round sees what
        await runs.redefine(conn, run.id, definition)
        text = f"runs/{dependent.awaited} has succeeded"
        await history.record(conn, run.id, "state", f"{text}: the run no longer waits for it", state=run.state.value)
        await planning.wake(conn)
    _log.info("run released", awaited=dependent.awaited)


async def _cancel(db: Database, dependent: DependentRun, why: str) -> None:
    async with db.transaction() as conn:
        run = await runs.lock(conn, dependent.run_id)
        if run.request_digest != dependent.request_digest or run.state is not RunState.QUEUED:
            return
        await runs.apply(conn, run, Cancel(), reason=why)
        await history.record(conn, run.id, "state", f"cancelled: {why}", level="error", state="cancelled")
