"""S1, S2, S3, S8, S9 and S10: who may do what, when, and only once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

from tests.history.index import Finding, History, doubles, grouped, seconds
from tests.history.record import Execution, Row

OVER = ("succeeded", "failed", "cancelled")
#: From a state to those that the next entry of a run's history may name.
LEGAL = {
    "": {"queued"},
    "queued": {"queued", "running", "paused", "cancelled"},
    "running": {"queued", "running", "paused", *OVER},
    "paused": {"queued", "paused", "cancelled"},
    "succeeded": {"succeeded", "queued"},
    "failed": {"failed", "queued"},
    "cancelled": {"cancelled", "queued"},
}
#: What only the holder of a lease brings about.
WRITTEN = {"started", "checkpoint", "copied", "message", "pinned", "dropped", "output"}


def each_grant_is_a_lease_of_its_own(history: History) -> Finding:
    """S1."""
    for lease in doubles(row["id"] for row in history.table("leases")):
        yield history.run_of(lease), f"lease {lease} was made twice"
    for run in history.runs:
        granted = [entry["lease_id"] for entry in history.events_of(run) if entry["kind"] == "granted"]
        for lease in doubles(granted):
            yield run, f"lease {lease} was granted twice"
        leases = history.leases_of(run)
        if sorted(granted) != sorted(row["id"] for row in leases):
            yield run, "its leases are not those that its history has granted"
        if [row["attempt"] for row in leases] != list(range(1, len(leases) + 1)):
            yield run, f"attempts are numbered {[row['attempt'] for row in leases]}"
        if history.runs[run]["attempts"] != len(leases):
            yield run, f"it counts {history.runs[run]['attempts']} attempts and has {len(leases)} leases"


def one_lease_at_a_time(history: History) -> Finding:
    """S1: by the history's own order, and by the database's clock unless it was set."""
    for run in history.runs:
        if len(unended := [row["id"] for row in history.leases_of(run) if row["end_time"] is None]) > 1:
            yield run, f"leases {unended} have not ended"
        holder = None
        for entry in history.events_of(run):
            if entry["kind"] == "granted":
                if holder is not None:
                    yield run, f"entry {entry['sequence']} grants while lease {holder} has not ended"
                holder = entry["lease_id"]
            elif entry["kind"] == "ended" and entry["lease_id"] == holder:
                holder = None
        for old, new in pairwise(history.leases_of(run)) if history.witness.steady else ():
            if old["end_time"] is not None and old["end_time"] > new["grant_time"]:
                yield run, f"attempt {new['attempt']} was granted before attempt {old['attempt']} ended"


def nothing_is_written_without_the_lease(history: History) -> Finding:
    """S2: in a run's history, nothing of a lease before its grant or after its end."""
    for run in history.runs:
        holder = None
        for entry in history.events_of(run):
            lease, kind = entry["lease_id"], entry["kind"]
            if kind == "granted":
                holder = lease
            elif lease is not None and lease != holder:
                yield run, f"entry {entry['sequence']} ({kind}) is of lease {lease}, which did not hold the run"
            elif kind == "ended":
                holder = None


def nothing_is_written_after_the_end(history: History) -> Finding:
    """S2, for what has a time: by the one clock."""
    if not history.witness.steady:
        return
    for name, column in (("checkpoints", "create_time"), ("log_chunks", "time")):
        for row in history.table(name):
            lease = history.leases.get(row["lease_id"])
            if lease and lease["end_time"] is not None and row[column] > lease["end_time"]:
                yield lease["run_id"], f"a row of {name} was written after the end of lease {lease['id']}"
    for row in history.table("metric_chunks"):
        lease = history.leases.get(row["lease_id"])
        if lease and lease["end_time"] is not None and max(row["times"], default=0) > seconds(lease["end_time"]):
            yield lease["run_id"], f"points made after the end of lease {lease['id']} were taken"


def nothing_is_written_for_others(history: History) -> Finding:
    """S2: what is a lease's is its run's, and of a node that it has."""
    for name in ("metric_chunks", "checkpoints", "run_events"):
        for row in history.table(name):
            if row["lease_id"] is not None and history.run_of(row["lease_id"]) != row["run_id"]:
                yield row["run_id"], f"a row of {name} is of lease {row['lease_id']}, which is not the run's"
    for name in ("cursors", "log_chunks"):
        for row in history.table(name):
            nodes = {place["node"] for place in history.places.get(row["lease_id"], ())}
            if row["node"] not in nodes:
                yield history.run_of(row["lease_id"]), f"a row of {name} is of node {row['node']}, which has no place"


def under_stop_one_executes(history: History) -> Finding:
    """S3: by the true times of trainers; one whose host was frozen is excused."""
    bound = [each for each in history.witness.executions if each.policy == "stop" and not each.excused]
    for one, other in combinations(bound, 2):
        if one.run == other.run and _together(one, other) and (one.lease, one.node) != (other.lease, other.node):
            if one.lease != other.lease:
                yield one.run, f"{one.host} and {other.host} trained at once ({one.lease}, {other.lease})"
        elif one.run == other.run and _together(one, other):
            yield one.run, f"node {one.node} of lease {one.lease} ran twice at once, on {one.host} and {other.host}"


def _together(one: Execution, other: Execution) -> bool:
    return one.began < other.ended and other.began < one.ended


def states_follow_each_other(history: History) -> Finding:
    """S8: the machine is closed, and the history is all of it."""
    for run, row in history.runs.items():
        entries = history.events_of(run)
        numbers = [entry["sequence"] for entry in entries]
        if numbers != list(range(1, row["event_sequence"] + 1)):
            yield run, f"its history is numbered {numbers} and counts {row['event_sequence']}"
        for before, after in pairwise(["", *(entry["state"] for entry in entries)]):
            if after not in LEGAL.get(before, ()):
                yield run, f"it went from {before or 'nothing'} to {after}"
        if entries and entries[-1]["state"] != row["state"]:
            yield run, f"it is {row['state']}, and {entries[-1]['state']} by its history"
        if (row["end_time"] is not None) != (row["state"] in OVER):
            yield run, f"it is {row['state']} and its end_time is {row['end_time']}"


def a_run_runs_while_it_is_leased(history: History) -> Finding:
    """S8: leased, claimable, paused or waiting; and what a lease has ends with it."""
    for run, row in history.runs.items():
        unended = [lease for lease in history.leases_of(run) if lease["end_time"] is None]
        if (row["state"] == "running") != bool(unended):
            yield run, f"it is {row['state']} with {len(unended)} unended leases"
        for lease in unended:
            if row["wanted"] != "run" and lease["stop_reason"] != row["wanted"]:
                yield run, f"it is wanted {row['wanted']}, and its lease is told {lease['stop_reason']}"
    for lease in history.leases.values():
        ended = lease["end_time"] is not None
        if ended != (lease["state"] == "ended") or ended != (lease["outcome"] is not None):
            yield lease["run_id"], f"lease {lease['id']} is {lease['state']}, {lease['outcome']}, {lease['end_time']}"
        if any((place["end_time"] is not None) != ended for place in history.places.get(lease["id"], ())):
            yield lease["run_id"], f"a place of lease {lease['id']} did not end with it"
        if bool(history.places.get(lease["id"])) == (lease["id"] in history.imported):
            yield lease["run_id"], f"lease {lease['id']} has places and was trained elsewhere, or neither"


def a_run_ends_by_its_holder_or_an_operator(history: History) -> Finding:
    """S8: success only by a fenced completion, cancellation only by a request; each lease ends once."""
    for run, row in history.runs.items():
        ended = [entry for entry in history.events_of(run) if entry["kind"] == "ended"]
        over = {lease["id"] for lease in history.leases_of(run) if lease["end_time"] is not None}
        if sorted(entry["lease_id"] for entry in ended) != sorted(over):
            yield run, "the ends in its history are not those of its leases"
        for entry in ended:
            yield from ((run, text) for text in _wrong_end(history, entry))
        if row["state"] == "cancelled" and row["wanted"] != "cancel":
            yield run, f"it is cancelled, and was wanted {row['wanted']}"
        if row["state"] in ("succeeded", "failed") and not (ended and ended[-1]["state"] == row["state"]):
            yield run, f"it is {row['state']}, and no lease ended so"


def _wrong_end(history: History, entry: Row) -> Iterator[str]:
    lease, outcome, state = history.leases.get(entry["lease_id"]), entry["details"].get("outcome"), entry["state"]
    if lease is None:
        return
    if outcome != lease["outcome"]:
        yield f"attempt {entry['attempt']} ended {lease['outcome']}, and {outcome} by the history"
    if outcome in ("succeeded", "failed") and lease["completion"] is None:
        yield f"attempt {entry['attempt']} {outcome}, and its holder never said so"
    if (state == "succeeded") != (outcome == "succeeded") or (state == "failed" and outcome == "stopped"):
        yield f"attempt {entry['attempt']} ended {outcome}, and so the run {state}"


def a_slot_has_one_lease(history: History) -> Finding:
    """S9: now, by the agents' own word, and over time."""
    unended = [
        (place["agent"], slot, place["lease_id"])
        for place in history.table("places")
        if place["end_time"] is None
        for slot in place["slots"]
    ]
    taken = [(row["agent"], row["slot"], row["lease_id"]) for row in history.table("taken_slots")]
    if sorted(unended) != sorted(taken):
        yield "", f"slots are taken by {sorted(taken)}, and unended places have {sorted(unended)}"
    for agent, slot in doubles((agent, slot) for agent, slot, _ in unended):
        yield "", f"slot {slot} of {agent} has several unended leases"
    for row in history.table("agents"):
        for slot in doubles(slot for held in row["held"] for slot in held["slots"]):
            yield "", f"{row['name']} says that it holds several leases for slot {slot}"
    for (agent, slot), stays in _stays(history).items():
        for old, new in pairwise(stays):
            if old[1] is None or old[1] > new[0]:
                yield "", f"slot {slot} of {agent} was given to lease {new[2]} while lease {old[2]} had it"
    for one, other in combinations(history.witness.executions, 2):
        shared = set(one.slots) & set(other.slots)
        if one.host == other.host and shared and _together(one, other):
            yield one.run, f"leases {one.lease} and {other.lease} ran on slots {sorted(shared)} of {one.host} at once"


def _stays(history: History) -> dict[tuple[str, int], list[Any]]:
    """(from, until, lease) of each slot that was ever taken, in order."""
    stays: dict[tuple[str, int], list[Any]] = {}
    for place in history.table("places") if history.witness.steady else ():
        lease = history.leases.get(place["lease_id"])
        for slot in place["slots"] if lease else ():
            stay = (lease["grant_time"], place["end_time"], lease["id"]) if lease else ()
            stays.setdefault((place["agent"], slot), []).append(stay)
    return {slot: sorted(of_slot, key=lambda stay: stay[0]) for slot, of_slot in stays.items()}


def a_submission_makes_one_run(history: History) -> Finding:
    """S9: idempotent by request id, also when the answer was lost."""
    requests = history.table("requests")
    for request in doubles(row["id"] for row in requests):
        yield "", f"request {request} was carried out twice"
    for row in requests:
        if row["run_id"] not in history.runs:
            yield row["run_id"], f"request {row['id']} made no run"
    known = {row["id"]: row["run_id"] for row in requests}
    for request, run in history.witness.submitted.items():
        if known.get(request) != run:
            yield run, f"request {request} was answered with it, and is kept with {known.get(request)}"
    for run in history.runs:
        if (created := [entry["kind"] for entry in history.events_of(run)].count("created")) != 1:
            yield run, f"it was created {created} times"


def a_directive_is_followed_once(history: History) -> Finding:
    """S10."""
    signals = [(signal.lease, signal.node, signal.name) for signal in history.witness.signals]
    for lease, node, name in dict.fromkeys(doubles(signals)):
        yield history.run_of(lease), f"the trainer of node {node} of lease {lease} was told {name} more than once"


def an_attempt_begins_by_saying_from_where(history: History) -> Finding:
    """S6: before anything else is written under a lease, and once."""
    for run in history.runs:
        for lease, entries in grouped(history.events_of(run), "lease_id").items():
            written = [entry["kind"] for entry in entries if entry["kind"] in WRITTEN]
            if lease is not None and written and (written[0] != "started" or written.count("started") > 1):
                yield run, f"under lease {lease} was written: {', '.join(written[:5])}"
    for lease, _, source in history.cursors:
        if (row := history.leases.get(lease)) is not None and row["start_time"] is None:
            yield row["run_id"], f"{source} of lease {lease} is stored, and the attempt never started"
