"""The safety properties, checked after every commit against what was truly done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from coordinator.lifecycle import TABLE, Phase
from tests.simulation.store.storage import Changed, Storage
from tests.simulation.store.tables import Row
from tests.simulation.truth import Truth

_STATES = {
    phase: "running" if phase in (Phase.RUNNING, Phase.PAUSING, Phase.CANCELLING, Phase.LAPSED) else phase.value
    for phase in Phase
}
LEGAL = {(_STATES[phase], _STATES[target]) for (phase, _), (_, targets) in TABLE.items() for target in targets}
_WRITTEN_BY_HOLDERS = ("cursors", "metric_chunks", "log_chunks", "checkpoints")


@dataclass(slots=True)
class Rules:
    """`report` takes a property's name and what breaks it."""

    storage: Storage
    truth: Truth
    report: Callable[[str, str], None]
    heartbeat: float
    graced: Callable[[], bool]  #: whether the control plane was away less than a TTL ago
    ended: set[UUID] = field(default_factory=set)  #: every lease that ever ended, also if a failover forgot it
    was_swapped: bool = False
    _known: dict[UUID, str] = field(default_factory=dict)  #: every lease there ever was, also if a failover forgot it
    _stored: dict[UUID, list[tuple[int, float]]] = field(default_factory=dict)  #: points by lease
    _just_superseded: list[Row] = field(default_factory=list)
    _spoken: dict[str, list[tuple[UUID, str]]] = field(default_factory=dict)  #: each agent's sessions with their boots

    def committed(self, changes: Sequence[Changed]) -> None:
        """One transaction's changes, all of them visible by now."""
        self._just_superseded = [each.after for each in changes if each.after and _superseded(each)]
        ended = {each.key for each in changes if each.table == "leases" and _ends(each.before, each.after)}
        self.ended |= ended
        self._enough_stays(changes)
        for each in changes:
            if each.after is None:
                continue
            if each.table in _WRITTEN_BY_HOLDERS:
                self._fenced(each.table, each.before, each.after, ended)
            match each.table:
                case "leases":
                    self._lease(each.before, each.after)
                case "places" if each.before is None:
                    self._place(each.after)
                case "places" if each.before and each.before["end_time"] is not None:
                    self.report("S2", f"a place of {each.after['lease_id']}, which had ended, was written")
                case "agents":
                    self._session(each.before or each.after, each.after)
                    self._note_session(each.before, each.after)
                case "checkpoints" if each.after["complete"] and not (each.before and each.before["complete"]):
                    self._completed(each.after)
                case "runs" if each.before is not None:
                    self._run(each.before, each.after)
                case "metric_chunks" if each.before is None:
                    self._take(each.after)
        self._points_match(
            {each.after["lease_id"] for each in changes if each.after and each.table in ("cursors", "metric_chunks")}
        )
        for run in dict.fromkeys(_runs_of(changes)):
            self._runs_while_leased(run)

    def swapped(self) -> None:
        """Start counting again what is stored, because the database is another one now."""
        self.was_swapped = True
        self._stored = {}
        for chunk in self.storage.rows("metric_chunks"):
            self._take(chunk)

    # leases

    def _lease(self, before: Row | None, after: Row) -> None:
        if before is None:
            if after["id"] in self._known:
                self.report("S1", f"lease {after['id']} of {after['run_id']} was of {self._known[after['id']]} before")
            self._known[after["id"]] = after["run_id"]
        elif before["end_time"] is not None and before["end_time"] != after["end_time"]:
            self.report("S2", f"lease {after['id']} had ended, and ended again")
        elif _lapses(before, after):
            self._check_lapse(before, after)
        elif _ends(before, after) and after["reason"].endswith("no longer runs it"):
            self._missing(after)
        if after["start_time"] is not None and (before is None or before["start_time"] is None):
            self._starts(after)

    def _check_lapse(self, before: Row, lease: Row) -> None:
        """Only a holder without a heartbeat for a whole TTL lapses, and none does in an outage of our own.

        A holder that had lapsed before the outage may lose the run after it.
        """
        places = [row for row in self.storage.rows("places") if row["lease_id"] == lease["id"]]
        if not any(row["expire_time"] < self.storage.now() for row in places):
            self.report("S1", f"{lease['id']} lapsed, and its places had not expired")
        if before["state"] == "held" and self.graced():
            self.report("F6", f"{lease['id']} lapsed, less than a TTL after an outage of our own")

    def _missing(self, lease: Row) -> None:
        """What an agent listed, and no longer lists, is gone; unless another machine has spoken in its name since."""
        execution = self.truth.execution(str(lease["id"]))
        runs = execution is not None and execution.ended is None and execution.process.alive
        for place in (row for row in self.storage.rows("places") if row["lease_id"] == lease["id"]):
            if runs and place["reported"] and not self._another_spoke(place):
                self.report("S8", f"{lease['id']} was taken for gone, and its trainer runs")

    def _note_session(self, before: Row | None, after: Row) -> None:
        if after["session_id"] is not None and (before is None or before["session_id"] != after["session_id"]):
            self._spoken.setdefault(after["name"], []).append((after["session_id"], after["boot_id"]))

    def _another_spoke(self, place: Row) -> bool:
        """Whether a session of another boot was opened after the one that listed the place last."""
        spoken = self._spoken.get(place["agent"], [])
        sessions = [session for session, _ in spoken]
        after = sessions.index(place["session_id"]) + 1 if place["session_id"] in sessions else 0
        return any(boot != place["boot_id"] for _, boot in spoken[after:])

    def _session(self, before: Row, after: Row) -> None:
        """F21."""
        if before["session_id"] == after["session_id"] or after["session_id"] is None:
            return
        silence = (self.storage.now() - before["heartbeat_time"]).total_seconds() if before["heartbeat_time"] else 1e9
        beats = before["session_id"] is not None and silence < 2 * self.heartbeat
        if beats and before["boot_id"] != after["boot_id"]:
            self.report("F21", f"another machine was let in as {after['name']}, and the first one beats")
        if after["instance_id"] in before["retired_instances"]:
            self.report("F21", f"an instance of {after['name']} that was replaced is back")

    def dropped(self, lease: str) -> None:
        """Note that an agent drops a lease, because a reply no longer has it."""
        row = self.storage.tables["leases"].get(UUID(lease))
        if self.was_swapped:  # another database may have said so
            return
        if row is not None and row["end_time"] is None and row["id"] not in self.ended:
            self.report("S8", f"{lease} was dropped by its agent, and is wanted")

    def acked(self, lease: str, node: int, source: str, offset: int) -> None:
        """S7: what is acknowledged is stored."""
        cursor = self.storage.tables["cursors"].get((UUID(lease), node, source))
        if UUID(lease) in self.storage.tables["leases"] and offset > (cursor["offset_bytes"] if cursor else 0):
            self.report("S7", f"{source} of {lease} is acknowledged up to {offset}, and not stored")

    def slots_of(self, lease: str) -> set[int]:
        """As they were granted."""
        place = self.storage.tables["places"].get((UUID(lease), 0))
        return set(place["slots"]) if place else set()

    def _fenced(self, table: str, before: Row | None, after: Row, ended: set[UUID]) -> None:
        """S2: nothing is written under a lease that had ended before."""
        if table == "checkpoints" and before is not None and before["complete"] == after["complete"]:
            return  # another start supersedes it
        lease = self.storage.tables["leases"].get(after["lease_id"])
        if lease is None:
            self.report("S2", f"{table} of a lease that there is not")
        elif lease["end_time"] is not None and lease["id"] not in ended:
            self.report("S2", f"{table} written under lease {lease['id']} of {lease['run_id']}, which had ended")
        elif lease["start_time"] is None:
            self.report("S6", f"{table} written under {lease['id']}, which has not said what it resumes from")

    def _place(self, mine: Row) -> None:
        """S9: no slot is granted twice."""
        others = [each for each in self.storage.rows("places") if each["lease_id"] != mine["lease_id"]]
        held = [each for each in others if each["end_time"] is None and each["agent"] == mine["agent"]]
        if shared := sorted(set(mine["slots"]) & {slot for each in held for slot in each["slots"]}):
            self.report("S9", f"slots {shared} of {mine['agent']} are granted twice")

    # checkpoints

    def _starts(self, lease: Row) -> None:
        """S6: from the newest on the curve but for those it skipped; nothing later of others stays on it."""
        skipped = {each["checkpoint"] for each in lease["skipped"]}
        step = lease["resumed_step"] if lease["resumed_from"] is not None else -1
        for other in self._checkpoints(lease["run_id"]):
            if other["lease_id"] != lease["id"] and not other["superseded"] and other["step"] > step:
                self.report("S6", f"{lease['id']} resumed at step {step}, and step {other['step']} stays on the curve")
        run = self.storage.tables["runs"][lease["run_id"]]
        if run["head_id"] != lease["resumed_from"]:
            self.report("S6", f"{lease['id']} resumed at step {step}, and the head is another")
        newer = [each for each in self._just_superseded if str(each["id"]) not in skipped]
        if newer:
            self.report(
                "S6", f"{lease['id']} resumed at step {step} and had not tried {[each['step'] for each in newer]}"
            )

    def _checkpoints(self, run: str) -> list[Row]:
        return [row for row in self.storage.rows("checkpoints") if row["run_id"] == run]

    def _head_moves(self, run: Row, old: UUID | None) -> None:
        lease = self._unended(run["id"])
        checkpoints = self.storage.tables["checkpoints"]
        head, before = checkpoints.get(run["head_id"]), checkpoints.get(old)
        if lease is None:
            self.report("S5", f"the head of {run['id']} moved without a lease")
        elif head is None or head["lease_id"] != lease["id"]:
            if run["head_id"] != lease["resumed_from"]:
                self.report("S5", f"the head of {run['id']} is nothing that its holder made or resumed from")
        elif not head["complete"] or head["superseded"]:
            self.report("S5", f"the head of {run['id']} is not complete, or superseded")
        elif before is not None and before["lease_id"] == head["lease_id"] and before["step"] >= head["step"]:
            self.report("S5", f"the head of {run['id']} went from step {before['step']} to {head['step']}")
        else:
            self._events_came_first(head)

    def _completed(self, new: Row) -> None:
        """S5: the newest whole checkpoint of the run's holder is head."""
        lease, run = self._unended(new["run_id"]), self.storage.tables["runs"][new["run_id"]]
        head = self.storage.tables["checkpoints"].get(run["head_id"])
        current = lease is not None and lease["id"] == new["lease_id"]
        if current and (head is None or head["lease_id"] != new["lease_id"] or head["step"] < new["step"]):
            self.report("S5", f"step {new['step']} of {new['run_id']} is whole, and not head")

    def _events_came_first(self, head: Row) -> None:
        written = self.truth.written.get(str(head["lease_id"]))
        cursor = self.storage.tables["cursors"].get((head["lease_id"], 0, "events"))
        line = written.checkpoints.get(head["step"], 0) if written else 0
        if (cursor["offset_bytes"] if cursor else 0) < line:
            self.report(
                "S5", f"step {head['step']} of {head['run_id']} is head, and the events up to it are not stored"
            )

    def _enough_stays(self, changes: Sequence[Changed]) -> None:
        """S6: the head stays; and of what would outlive its host, if there was any, something does."""
        for each in changes:
            row = each.after if each.table == "checkpoints" else None
            run = self.storage.tables["runs"][row["run_id"]] if row else {}
            if row and row["remove_time"] and run["head_id"] == each.key:
                self.report("S6", f"step {row['step']} of {row['run_id']} is head, and scheduled for deletion")
        gone = {each.before["checkpoint_id"] for each in changes if _goes_elsewhere(each) and each.before}
        fit = [row for row in self.storage.rows("checkpoints") if row["complete"] and not row["superseded"]]
        for run in {row["run_id"] for row in fit if row["id"] in gone}:
            left = [row["id"] for row in fit if row["run_id"] == run and row["remove_time"] is None]
            if not any(_is_elsewhere(copy) and copy["checkpoint_id"] in left for copy in self._copies()):
                self.report("S6", f"the only copies of {run} beyond its host were let go")

    def _copies(self) -> list[Row]:
        return self.storage.rows("checkpoint_copies")

    # events

    def _take(self, chunk: Row) -> None:
        if chunk["metric"] == "eval_loss":
            return
        points = zip(chunk["steps"], chunk["points"], strict=True)
        self._stored.setdefault(chunk["lease_id"], []).extend(points)

    def _points_match(self, leases: Iterable[UUID]) -> None:
        """S7: every line up to the cursor is stored once, and nothing else is."""
        for lease in sorted(leases):
            cursor = self.storage.tables["cursors"].get((lease, 0, "events"))
            written = self.truth.written.get(str(lease))
            true = written.up_to(cursor["offset_bytes"]) if written and cursor else []
            stored = self._stored.get(lease, [])
            if stored != true:
                have, want = [step for step, _ in stored], [step for step, _ in true]
                self.report("S7", f"{lease}: the points of steps {have} are stored, the cursor has passed {want}")

    # runs

    def _run(self, before: Row, after: Row) -> None:
        if after["head_id"] != before["head_id"]:
            self._head_moves(after, before["head_id"])
        if before["state"] != after["state"]:
            if (before["state"], after["state"]) not in LEGAL:
                self.report("S8", f"{after['id']} went from {before['state']} to {after['state']}")
            if after["state"] == "succeeded":
                self._succeeds(after["id"])

    def _unended(self, run: str) -> Row | None:
        found = [row for row in self.storage.rows("leases") if row["run_id"] == run and row["end_time"] is None]
        if len(found) > 1:
            self.report("S1", f"{run} has {len(found)} unended leases")
        return found[0] if found else None

    def _runs_while_leased(self, run_id: str) -> None:
        run = self.storage.tables["runs"].get(run_id)
        if run is not None and (run["state"] == "running") != (self._unended(run_id) is not None):
            self.report("S8", f"{run_id} is {run['state']}, and its leases say otherwise")

    def _succeeds(self, run: str) -> None:
        succeeded = [r["id"] for r in self.storage.rows("leases") if r["run_id"] == run and r["outcome"] == "succeeded"]
        finished = {each.lease for each in self.truth.executions if each.finished}
        last = [lease for lease in succeeded if str(lease) in finished]
        if not last:
            self.report("S8", f"{run} succeeded, and no trainer of it had finished")
            return
        saved = max(step for lease, step in self.truth.states if lease == str(last[-1]))
        head = self.storage.tables["checkpoints"].get(self.storage.tables["runs"][run]["head_id"])
        if head is None or head["lease_id"] != last[-1] or head["step"] != saved:
            self.report("S5", f"{run} succeeded, and its last state, of step {saved}, is not its head")


def _ends(before: Row | None, after: Row | None) -> bool:
    return after is not None and after["end_time"] is not None and (before is None or before["end_time"] is None)


def _lapses(before: Row, after: Row) -> bool:
    """Return whether the lease lapses, or ends because its holder sends no heartbeat."""
    lapses = before["state"] == "held" and after["state"] == "lapsed"
    return lapses or (
        _ends(before, after)
        and after["reason"] in ("no heartbeat from its holder", "no heartbeat; granted to another host")
    )


def _superseded(change: Changed) -> bool:
    """Return whether a complete checkpoint that is not scheduled for deletion leaves the curve."""
    before, after = change.before, change.after
    if change.table != "checkpoints" or before is None or after is None:
        return False
    return bool(after["superseded"] and not before["superseded"] and after["complete"] and not after["remove_time"])


def _is_elsewhere(copy: Row) -> bool:
    return copy["store"] != "host" and copy["remove_time"] is None


def _goes_elsewhere(change: Changed) -> bool:
    """Whether a copy beyond its host goes."""
    before, after = change.before, change.after
    if change.table != "checkpoint_copies" or before is None or not _is_elsewhere(before):
        return False
    return after is None or not _is_elsewhere(after)


def _runs_of(changes: Iterable[Changed]) -> Iterable[str]:
    for each in changes:
        row: Mapping[str, Any] = each.after or each.before or {}
        if each.table == "leases":
            yield row["run_id"]
        elif each.table == "runs":
            yield row["id"]
