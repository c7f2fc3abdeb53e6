"""The statements of `coordinator.store.retention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from coordinator.store import retention
from coordinator.values import Removal
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.tables import Row

repertoire = Repertoire()


def _is_resumed(ex: Execution, row: Row) -> bool:
    leases = ex.where("leases", "run_id", row["run_id"])
    return any(lease["end_time"] is None and lease["resumed_from"] == row["id"] for lease in leases)


def _is_elsewhere(ex: Execution, checkpoint_id: UUID, node: int) -> bool:
    copies = ex.where("checkpoint_copies", "checkpoint_id", checkpoint_id)
    return any(copy["node"] == node and copy["store"] != "host" and copy["remove_time"] is None for copy in copies)


@repertoire.carries_out(retention.read_kept_rows)
async def read_kept_rows(ex: Execution, run_id: str) -> Sequence[Mapping[str, Any]]:
    found = [row for row in ex.where("checkpoints", "run_id", run_id) if row["remove_time"] is None]
    found.sort(key=lambda row: (row["attempt"], row["step"]))
    return [_judged(ex, row) for row in found]


_TOLD = ("id", "attempt", "step", "metrics", "evaluation_due", "complete", "superseded", "pinned", "create_time")


def _judged(ex: Execution, row: Row) -> Row:
    run, lease = ex.get("runs", row["run_id"]), ex.get("leases", row["lease_id"])
    assert run is not None and lease is not None
    parts = ex.where("checkpoint_parts", "checkpoint_id", row["id"])
    return {
        **{name: row[name] for name in _TOLD},
        "head": run["head_id"] == row["id"],
        "current": lease["end_time"] is None,
        "resumed": _is_resumed(ex, row),
        "size": sum(part["size"] for part in parts),
        "beyond": all(_is_elsewhere(ex, row["id"], part["node"]) for part in parts),
        "now": ex.now,
    }


@repertoire.carries_out(retention.mark_checkpoints)
async def mark_checkpoints(ex: Execution, reasons: Mapping[UUID, str]) -> None:
    for checkpoint_id, reason in reasons.items():
        if row := ex.get("checkpoints", checkpoint_id):
            await ex.update("checkpoints", [row], remove_time=ex.now, remove_reason=reason)


def _copies(ex: Execution, checkpoint_ids: Sequence[UUID], which: Callable[[Row], bool]) -> list[Row]:
    found = [row for each in checkpoint_ids for row in ex.where("checkpoint_copies", "checkpoint_id", each)]
    return [row for row in found if which(row)]


def _is_to_be_marked(row: Row) -> bool:
    return row["remove_time"] is None and row["store"] != "relay"


@repertoire.carries_out(retention.mark_copies)
async def mark_copies(ex: Execution, checkpoint_ids: Sequence[UUID]) -> None:
    rows = _copies(ex, checkpoint_ids, _is_to_be_marked)
    await ex.update("checkpoint_copies", rows, _is_to_be_marked, remove_time=ex.now)


@repertoire.carries_out(retention.forget_own_copies)
async def forget_own_copies(ex: Execution, checkpoint_ids: Sequence[UUID]) -> None:
    for row in _copies(ex, checkpoint_ids, lambda row: bool(row["store"] == "relay")):
        await ex.delete("checkpoint_copies", row)


@repertoire.carries_out(retention.set_pin)
async def set_pin(ex: Execution, checkpoint_id: UUID, pinned: bool, reason: str) -> None:
    if row := ex.get("checkpoints", checkpoint_id):
        await ex.update("checkpoints", [row], pinned=pinned, pin_reason=reason)


def _is_spare(ex: Execution, copy: Row, uri: str) -> bool:
    if (copy["uri"], copy["store"], copy["remove_time"]) != (uri, "host", None):
        return False
    checkpoint = ex.get("checkpoints", copy["checkpoint_id"])
    assert checkpoint is not None
    run = ex.get("runs", checkpoint["run_id"])
    assert run is not None
    needed = checkpoint["remove_time"] or run["head_id"] == checkpoint["id"] or _is_resumed(ex, checkpoint)
    return not needed and _is_elsewhere(ex, copy["checkpoint_id"], copy["node"])


def _checkpoint_of(ex: Execution, copy: Row) -> Row:
    checkpoint = ex.get("checkpoints", copy["checkpoint_id"])
    assert checkpoint is not None
    return checkpoint


@repertoire.carries_out(retention.find_runs_with_spare_copies)
async def find_runs_with_spare_copies(ex: Execution, uri: str) -> list[str]:
    spare = [copy for copy in ex.rows("checkpoint_copies") if _is_spare(ex, copy, uri)]
    return sorted({_checkpoint_of(ex, copy)["run_id"] for copy in spare})


@repertoire.carries_out(retention.mark_spare_copies)
async def mark_spare_copies(ex: Execution, run_id: str, uri: str) -> list[int]:
    ids = [row["id"] for row in ex.where("checkpoints", "run_id", run_id)]
    spare = _copies(ex, ids, lambda copy: _is_spare(ex, copy, uri))
    marked = await ex.update("checkpoint_copies", spare, lambda copy: _is_spare(ex, copy, uri), remove_time=ex.now)
    return sorted(_checkpoint_of(ex, copy)["step"] for copy in marked)


@repertoire.carries_out(retention.list_removals)
async def list_removals(ex: Execution, agent: str, age: float) -> list[Removal]:
    before = ex.now - timedelta(seconds=age)
    marked = [copy for copy in ex.rows("checkpoint_copies") if copy["remove_time"] and copy["remove_time"] <= before]
    marked.sort(key=lambda copy: (copy["remove_time"], copy["checkpoint_id"], copy["node"], copy["uri"]))
    marked.sort(key=lambda copy: bool(copy["store"] != "host"))
    found = [copy for copy in marked if _reaches(ex, agent, copy)][: retention.LISTED]
    return [_removal(_checkpoint_of(ex, copy), copy) for copy in found]


def _reaches(ex: Execution, agent: str, copy: Row) -> bool:
    if copy["store"] == "host":
        return bool(copy["uri"] == retention.host_copy_uri(agent))
    leases = ex.where("leases", "run_id", _checkpoint_of(ex, copy)["run_id"])
    places = [(lease, place) for lease in leases for place in ex.where("places", "lease_id", lease["id"])]
    places.sort(key=lambda pair: (-pair[0]["attempt"], -pair[0]["grant_time"].timestamp(), pair[1]["node"]))
    return bool(places) and places[0][1]["agent"] == agent


def _removal(checkpoint: Row, copy: Row) -> Removal:
    return Removal(
        checkpoint_id=checkpoint["id"],
        **{name: checkpoint[name] for name in ("run_id", "lease_id", "attempt", "step")},
        **{name: copy[name] for name in ("node", "store", "uri")},
    )


@repertoire.carries_out(retention.forget_copies)
async def forget_copies(ex: Execution, deleted: Sequence[tuple[UUID, int, str]]) -> int:
    found = [ex.get("checkpoint_copies", key) for key in dict.fromkeys(deleted)]
    rows = [row for row in found if row is not None and row["remove_time"] is not None]
    for row in rows:
        await ex.delete("checkpoint_copies", row)
    return len(rows)


@repertoire.carries_out(retention.find_orphans)
async def find_orphans(ex: Execution, sealed: Sequence[tuple[UUID, int]], age: float) -> list[tuple[UUID, int]]:
    before = ex.now - timedelta(seconds=age)
    return sorted(key for key in sealed if _is_orphan(ex, *key, before))


def _is_orphan(ex: Execution, lease_id: UUID, step: int, before: datetime) -> bool:
    lease = ex.get("leases", lease_id)
    if lease is None or lease["end_time"] is None:
        return False
    rows = [row for row in ex.where("checkpoints", "lease_id", lease_id) if row["step"] == step]
    return all(row["remove_time"] is not None and row["remove_time"] <= before for row in rows)


@repertoire.carries_out(retention.find_runs_with_max_age)
async def find_runs_with_max_age(ex: Execution) -> list[str]:
    aged = [row for row in ex.rows("runs") if row["spec"].get("checkpoint", {}).get("keep", {}).get("max_age")]
    return sorted(row["id"] for row in aged if _has_staying(ex, row["id"]))


def _has_staying(ex: Execution, run_id: str) -> bool:
    return any(row["remove_time"] is None for row in ex.where("checkpoints", "run_id", run_id))
