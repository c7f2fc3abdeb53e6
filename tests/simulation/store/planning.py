"""The statements of `coordinator.store.planning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from coordinator.store import planning
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.moments import later, seconds
from tests.simulation.store.tables import Row

repertoire = Repertoire()
_AVOID_WITHIN = timedelta(minutes=int(planning.AVOID_WITHIN.removesuffix(" minutes")))
_ON_A_HOST = "host://agents/"


@repertoire.carries_out(planning.wake)
async def wake(ex: Execution) -> None:
    ex.notify("relay_queue", "")


@repertoire.carries_out(planning.read_time)
async def read_time(ex: Execution) -> tuple[datetime, datetime | None]:
    (row,) = ex.rows("deployment")
    return ex.now, row["stop_grants_after"]


@repertoire.carries_out(planning.read_claimable)
async def read_claimable(ex: Execution) -> Sequence[Row]:
    wanted = (run for run in ex.rows("runs") if run["wanted"] == "run" and run["waits_for"] is None)
    return [_claim(ex, run) for run in wanted if _is_claimable(ex, run)]


def _is_claimable(ex: Execution, run: Row) -> bool:
    return run["state"] == "queued" or (run["state"] == "running" and _is_silent(ex, run))


def _is_silent(ex: Execution, run: Row) -> bool:
    now = ex.now
    lapsed = (
        lease for lease in ex.where("leases", "run_id", run["id"])
        if lease["end_time"] is None and lease["state"] == "lapsed"
    )  # fmt: skip
    return any(place["expire_time"] < now for lease in lapsed for place in ex.where("places", "lease_id", lease["id"]))


def _claim(ex: Execution, run: Row) -> Row:
    copies = ex.where("checkpoint_copies", "checkpoint_id", run["head_id"])
    near = [copy["uri"].removeprefix(_ON_A_HOST) for copy in copies if copy["store"] == "host"]
    since = ex.now - _AVOID_WITHIN
    avoid = [
        place["agent"]
        for lease in ex.where("leases", "run_id", run["id"])
        if lease["outcome"] == "faulted" and later(lease["end_time"], since)
        for place in ex.where("places", "lease_id", lease["id"])
    ]
    asked = {name: run["spec"].get(name) for name in ("resources", "lifecycle")}
    named = {name: run[name] for name in ("id", "priority", "create_time", "eligible_time")}
    return {
        **named,
        "spec": _without_nulls(asked),
        "near": list(dict.fromkeys(near)),
        "avoid": list(dict.fromkeys(avoid)),
    }


def _without_nulls(value: Any) -> Any:
    """jsonb_strip_nulls: of objects, also those in lists."""
    match value:
        case dict():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
        case list():
            return [_without_nulls(item) for item in value]
    return value


@repertoire.carries_out(planning.read_hosts)
async def read_hosts(ex: Execution, ttl: float) -> Sequence[Row]:
    since = ex.now - seconds(ttl)
    return [
        {
            **row,
            "quiet": row["heartbeat_time"] is None or row["heartbeat_time"] < since,
            "taken": [slot["slot"] for slot in ex.where("taken_slots", "agent", row["name"])],
        }
        for row in sorted(ex.rows("agents"), key=lambda row: str(row["name"]))
    ]


@repertoire.carries_out(planning.record_explanations)
async def record_explanations(ex: Execution, explanations: Mapping[str, str]) -> None:
    for run_id, reason in sorted(explanations.items()):

        def is_news(row: Row, reason: str = reason) -> bool:
            return row["state"] == "queued" and bool(row["reason"] != reason)

        row = ex.get("runs", run_id)
        if row and is_news(row) and (row := await ex.lock("runs", row, is_news, skip_locked=True)):
            ex.write("runs", row, reason=reason)
