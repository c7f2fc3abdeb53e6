"""The statements of `coordinator.store.checkpoints`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from uuid import UUID

from coordinator.store import checkpoints
from coordinator.values import CheckpointView, Copy, NewCheckpoint, Part
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.tables import Row, jsonb

repertoire = Repertoire()


def _view(ex: Execution, row: Row) -> CheckpointView:
    run = ex.get("runs", row["run_id"])
    parts = sorted(ex.where("checkpoint_parts", "checkpoint_id", row["id"]), key=lambda part: int(part["node"]))
    copies = ex.where("checkpoint_copies", "checkpoint_id", row["id"])
    copies.sort(key=lambda copy: (copy["create_time"], copy["uri"]))
    return CheckpointView(
        id=row["id"],
        run_id=row["run_id"],
        lease_id=row["lease_id"],
        attempt=row["attempt"],
        step=row["step"],
        metrics=row["metrics"],
        evaluation_due=row["evaluation_due"],
        complete=row["complete"],
        superseded=row["superseded"],
        head=run is not None and run["head_id"] == row["id"],
        create_time=row["create_time"].timestamp(),
        pinned=row["pinned"],
        pin_reason=row["pin_reason"],
        remove_time=row["remove_time"] and row["remove_time"].timestamp(),
        remove_reason=row["remove_reason"],
        parts=tuple(_part(part, [copy for copy in copies if copy["node"] == part["node"]]) for part in parts),
    )


def _part(part: Row, copies: list[Row]) -> Part:
    return Part(
        node=part["node"],
        manifest_digest=part["manifest_digest"],
        size=part["size"],
        files=part["files"],
        copies=tuple(
            Copy(
                store=copy["store"],
                uri=copy["uri"],
                create_time=copy["create_time"].timestamp(),
                remove_time=copy["remove_time"] and copy["remove_time"].timestamp(),
            )
            for copy in copies
        ),
    )


@repertoire.carries_out(checkpoints.get)
async def get(ex: Execution, checkpoint_id: UUID) -> CheckpointView | None:
    row = ex.get("checkpoints", checkpoint_id)
    return _view(ex, row) if row else None


def _by_step(row: Row) -> int:
    return int(row["step"])


@repertoire.carries_out(checkpoints.list_of_lease)
async def list_of_lease(ex: Execution, lease_id: UUID) -> list[CheckpointView]:
    rows = sorted(ex.where("checkpoints", "lease_id", lease_id), key=_by_step)
    return [_view(ex, row) for row in rows[-checkpoints.OFFERED :]]


@repertoire.carries_out(checkpoints.list_resumable)
async def list_resumable(ex: Execution, run_id: str) -> list[CheckpointView]:
    fit = [row for row in ex.where("checkpoints", "run_id", run_id) if _is_fit(row)]
    fit.sort(key=lambda row: (row["attempt"], row["step"]), reverse=True)
    kept = [row["id"] for row in fit if _is_beyond_its_host(ex, row)][: checkpoints.OFFERED]
    offered = [row for place, row in enumerate(fit) if place < checkpoints.OFFERED or row["id"] in kept]
    return [_view(ex, row).without_removed_copies() for row in offered]


def _is_fit(row: Row) -> bool:
    return row["complete"] and not row["superseded"] and row["remove_time"] is None


def _is_beyond_its_host(ex: Execution, row: Row) -> bool:
    copies = ex.where("checkpoint_copies", "checkpoint_id", row["id"])
    return any(copy["store"] != "host" and copy["remove_time"] is None for copy in copies)


@repertoire.carries_out(checkpoints.find_last_step)
async def find_last_step(ex: Execution, lease_id: UUID) -> int | None:
    return max((row["step"] for row in ex.where("checkpoints", "lease_id", lease_id)), default=None)


@repertoire.carries_out(checkpoints.find)
async def find(ex: Execution, lease_id: UUID, step: int) -> UUID | None:
    return next((row["id"] for row in ex.where("checkpoints", "lease_id", lease_id) if row["step"] == step), None)


@repertoire.carries_out(checkpoints.add)
async def add(ex: Execution, run_id: str, lease_id: UUID, attempt: int, new: NewCheckpoint) -> UUID:
    values = {"run_id": run_id, "lease_id": lease_id, "attempt": attempt, "step": new.step}
    row = await ex.insert("checkpoints", **values, evaluation_due=new.evaluation_due)
    checkpoint_id: UUID = row["id"]
    return checkpoint_id


@repertoire.carries_out(checkpoints.insert_part)
async def insert_part(ex: Execution, checkpoint_id: UUID, new: NewCheckpoint) -> None:
    await ex.insert_new(
        "checkpoint_parts",
        checkpoint_id=checkpoint_id,
        node=new.node,
        manifest_digest=new.manifest_digest,
        size=new.size,
        files=new.files,
    )


def _is_incomplete(row: Row) -> bool:
    return not row["complete"]


@repertoire.carries_out(checkpoints.merge_metrics)
async def merge_metrics(ex: Execution, checkpoint_id: UUID, metrics: Mapping[str, float]) -> None:
    row = ex.get("checkpoints", checkpoint_id)
    if row and _is_incomplete(row) and (row := await ex.lock("checkpoints", row, _is_incomplete)):
        ex.write("checkpoints", row, metrics={**row["metrics"], **jsonb(metrics)})


@repertoire.carries_out(checkpoints.add_evaluation)
async def add_evaluation(ex: Execution, lease_id: UUID, step: int, values: Mapping[str, float]) -> bool:
    lease = ex.get("leases", lease_id)
    resumed = lease and lease["resumed_from"] and ex.get("checkpoints", lease["resumed_from"])
    own = ex.where("checkpoints", "lease_id", lease_id)
    rows = [row for row in [*own, *([resumed] if resumed else [])] if row["step"] == step]
    for row in rows:
        if locked := await ex.lock("checkpoints", row):
            ex.write("checkpoints", locked, metrics={**jsonb(values), **locked["metrics"]}, evaluation_due=False)
    return bool(rows)


@repertoire.carries_out(checkpoints.read_evaluation)
async def read_evaluation(ex: Execution, run_id: str, lease_id: UUID, step: int) -> dict[str, float]:
    own = ex.get("leases", lease_id)
    chunks: list[Row] = []
    for lease in ex.where("leases", "run_id", run_id):
        kept = lease["kept_until_step"] is None or step <= lease["kept_until_step"]
        if lease["id"] == lease_id or (kept and own and own["resumed_step"] == step):
            chunks += [
                row for row in ex.where("metric_chunks", "lease_id", lease["id"]) if row["metric"][:5] == "eval_"
            ]
    found: dict[str, float] = {}
    for chunk in sorted(chunks, key=lambda chunk: int(chunk["id"])):
        for at, value in zip(chunk["steps"], chunk["points"], strict=True):
            if at == step and not math.isnan(value):
                found[chunk["metric"]] = value
    return found


@repertoire.carries_out(checkpoints.read_digest)
async def read_digest(ex: Execution, checkpoint_id: UUID, node: int) -> str:
    part = ex.get("checkpoint_parts", (checkpoint_id, node))
    assert part is not None
    digest: str = part["manifest_digest"]
    return digest


@repertoire.carries_out(checkpoints.add_copy)
async def add_copy(ex: Execution, checkpoint_id: UUID, node: int, copy: Copy) -> bool:
    row = ex.get("checkpoints", checkpoint_id)
    if row is None or (row["remove_time"] is not None and copy.store == "relay"):
        return False
    added = await ex.insert_new(
        "checkpoint_copies",
        checkpoint_id=checkpoint_id,
        node=node,
        uri=copy.uri,
        store=copy.store,
        remove_time=ex.now if row["remove_time"] is not None else None,
    )
    return added is not None and added["remove_time"] is None


@repertoire.carries_out(checkpoints.mark_complete)
async def mark_complete(ex: Execution, checkpoint_id: UUID) -> bool:
    def is_whole(row: Row) -> bool:
        parts = ex.where("checkpoint_parts", "checkpoint_id", checkpoint_id)
        return not row["complete"] and len(parts) == len(ex.where("places", "lease_id", row["lease_id"]))

    row = ex.get("checkpoints", checkpoint_id)
    whole = [row] if row and is_whole(row) else []
    return bool(await ex.update("checkpoints", whole, is_whole, complete=True))


@repertoire.carries_out(checkpoints.move_head)
async def move_head(ex: Execution, run_id: str, checkpoint_id: UUID) -> bool:
    new = ex.get("checkpoints", checkpoint_id)
    if new is None or not new["complete"]:
        return False

    def is_before(run: Row) -> bool:
        head = ex.get("checkpoints", run["head_id"])
        return not (head and head["lease_id"] == new["lease_id"] and head["step"] >= new["step"])

    run = ex.get("runs", run_id)
    if run is None or not is_before(run) or (run := await ex.lock("runs", run, is_before)) is None:
        return False
    ex.write("runs", run, head_id=checkpoint_id, update_time=ex.now)
    return True


@repertoire.carries_out(checkpoints.set_head)
async def set_head(ex: Execution, run_id: str, checkpoint_id: UUID | None, step: int) -> None:
    if (run := ex.get("runs", run_id)) and (run := await ex.lock("runs", run)):
        ex.write("runs", run, head_id=checkpoint_id, step=step, update_time=ex.now)


@repertoire.carries_out(checkpoints.cut_curves)
async def cut_curves(ex: Execution, run_id: str, lease_id: UUID, step: int) -> None:
    others = [row for row in ex.where("leases", "run_id", run_id) if row["id"] != lease_id]
    for row in await ex.lock_all("leases", others):
        kept = row["kept_until_step"]
        ex.write("leases", row, kept_until_step=step if kept is None else min(kept, step))


@repertoire.carries_out(checkpoints.supersede)
async def supersede(ex: Execution, run_id: str, lease_id: UUID, step: int, attempt: int) -> int:
    def is_after(row: Row) -> bool:
        after = row["step"] > step or (row["step"] == step and row["attempt"] > attempt)
        return after and row["lease_id"] != lease_id and not row["superseded"]

    after = [row for row in ex.where("checkpoints", "run_id", run_id) if is_after(row)]
    return len(await ex.update("checkpoints", after, is_after, superseded=True))
