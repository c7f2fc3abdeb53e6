"""The rules of the protocol, each removed: a simulator that does not notice proves nothing.

A mutant replaces a function of the agent, the coordinator, or the simulated database where the rule is a condition in
SQL. `python -m tests.simulation mutants` hunts each until a seed shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import ModuleType
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

from agent import supervisor as supervising
from agent.attempt import setup
from agent.attempt.attempt import Attempt
from agent.attempt.start_attempt import StartReport
from agent.checkpoints import resume
from agent.leases import DesiredLease, HeartbeatReply, LeasePlan, SessionState, plan
from agent.session import Session
from agent.shim.kill_deadlines import KillDeadlines
from agent.supervisor import Supervisor
from coordinator import lifecycle, outage, retention
from coordinator.commands import checkpoints as checkpoint_commands
from coordinator.commands import events as event_commands
from coordinator.commands import leases as lease_commands
from coordinator.commands import sessions as session_commands
from coordinator.lifecycle import Change, Lapsed, LeaseState, Phase, Status
from coordinator.rpc import sessions as live_sessions
from coordinator.store import agents, checkpoints, deployment, desired_state, events, leases, runs
from coordinator.store.leases import LeaseRow
from coordinator.store.statement import Statement
from relay.errors import LeaseLost
from relay.timing import TEST
from tests.simulation.store import desired_state as simulated_wishes
from tests.simulation.store import events as simulated_events
from tests.simulation.store import leases as simulated_leases
from tests.simulation.store.execution import Execution
from tests.simulation.store.repertoire import REPERTOIRE
from tests.simulation.store.storage import Snapshot, Storage
from tests.simulation.store.tables import Row

Patch = AbstractContextManager[Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule, and what is done to the code so that it does not hold."""

    name: str
    rule: str  #: in words, with its place in the design
    kinds: tuple[str, ...]  #: of the faults that the rule is for; none: of all
    patches: Callable[[], Sequence[Patch]]
    spare: str = ""  #: why nothing breaks without it: other rules keep what it is for
    ours: bool = False  #: Relay was like that once: a fault that was found on the way, kept as it was before its repair
    first: int = 0  #: the seed to begin with, for what is so rare that it was found by thousands

    @contextmanager
    def alive(self) -> Iterator[None]:
        """For as long as the block lasts the rule is gone."""
        with ExitStack() as stack:
            for each in self.patches():
                stack.enter_context(each)
            yield


MUTANTS: list[Mutant] = []


def mutant(
    rule: str, kinds: str, *, spare: str = "", ours: bool = False, first: int = 0
) -> Callable[[Callable[[], Sequence[Patch]]], Callable[[], Sequence[Patch]]]:
    """Register a mutant. The function returns what is replaced; `kinds` are the faults that show it soonest."""

    def add(patches: Callable[[], Sequence[Patch]]) -> Callable[[], Sequence[Patch]]:
        MUTANTS.append(Mutant(patches.__name__, rule, tuple(kinds.split()), patches, spare, ours, first))
        return patches

    return add


def carried_out(statement: Statement[..., Any], function: Callable[..., Any]) -> Patch:
    """The simulated database does something else for a statement."""
    return patch.dict(cast("dict[Any, Any]", REPERTOIRE), {statement: function})


def nothing(result: Any = None) -> Callable[..., Any]:
    """Return a function that does nothing and returns this value."""

    async def do_nothing(*_: Any, **__: Any) -> Any:
        return result

    return do_nothing


class Instead:
    """A module, but for some of its functions."""

    def __init__(self, module: ModuleType, **functions: Any) -> None:
        assert all(hasattr(module, name) for name in functions), f"{module.__name__} lacks one of {list(functions)}"
        self._module = module
        self.__dict__ |= functions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


# Trust and time


@mutant(
    "trust counts from the moment the answered heartbeat was sent (§2 Time)",
    "stunned",
)
def trust_from_receipt() -> Sequence[Patch]:
    apply_reply = Session._apply_reply

    def mutated(self: Session, reply: HeartbeatReply) -> bool:
        if reply.answers in self._state.sent:
            _, listed = self._state.sent[reply.answers]
            self._state = self._state.record_sent(reply.answers, self._now(), listed)
        return apply_reply(self, reply)

    return [patch.object(Session, "_apply_reply", mutated)]


@mutant("under `stop` the shim kills when the trust is over, whoever is gone (§2 Lapse, §5)", "partition")
def no_deadline() -> Sequence[Patch]:
    pass_time = KillDeadlines.pass_time

    def mutated(self: KillDeadlines, now: float) -> bool:
        self.trust = None
        return pass_time(self, now)

    return [patch.object(KillDeadlines, "pass_time", mutated)]


@mutant("under `stop` nothing is started on an old promise (§2 Lapse, S3)", "frozen_at_grant trainer_killed", ours=True)
def started_too_late() -> Sequence[Patch]:
    return [patch.object(KillDeadlines, "may_start", lambda self, now: True)]


@mutant(
    "a lapse is judged again under lock: a renewal that was being written counts (§2 Lapse)",
    "late_heartbeat",
)
def lapse_unchecked() -> Sequence[Patch]:
    async def mutated(ex: Execution, lease_id: UUID, at: Any = None) -> str | None:
        return next((row["agent"] for row in simulated_leases.places_of(ex, lease_id)), None)

    return [carried_out(leases.find_expired_agent, mutated)]


@mutant(
    "under `stop` the lapse ends the lease (§2 Lapse)",
    "partition host_frozen",
    spare="a regrant ends it too, and the shim has killed by then; ending it at once only shows the truth sooner",
)
def stop_lapse_stays() -> Sequence[Patch]:
    def mutated(status: Status, _: Lapsed) -> Change:
        return Change(replace(status, lease=LeaseState.LAPSED))

    entry = (mutated, lifecycle.TABLE[Phase.RUNNING, Lapsed][1])
    return [patch.dict(cast("dict[Any, Any]", lifecycle.TABLE), {(Phase.RUNNING, Lapsed): entry})]


@mutant("after an outage nothing lapses for a full TTL (§2 Outage grace)", "replica_killed database_away")
def no_outage_grace() -> Sequence[Patch]:
    return [patch.object(outage, "find_outage", lambda *_, **__: "")]


# Beats


@mutant("a reply of a lower desired version is ignored (§2 Heartbeat replies)", "weather pause")
def no_wish_version() -> Sequence[Patch]:
    return [patch.object(SessionState, "accepts", lambda self, beat: beat.session_id == self.session_id)]


@mutant(
    "a reply is built from a read begun after the message it answers (§2 Heartbeat replies)",
    "partition agent_frozen",
    spare="versions order what was read, and a shim has killed before its lease lapses",
)
def stale_read() -> Sequence[Patch]:
    beat = session_commands.record_heartbeats

    async def mutated(db: Any, heartbeats: Sequence[Any], ttl: float) -> Any:
        before = await session_commands.read_desired_state(db, [pulse.agent for pulse in heartbeats])
        await beat(db, heartbeats, ttl)
        return before

    return [patch.object(session_commands, "record_heartbeats", mutated)]


@mutant(
    "a reply's version and its leases are of one moment (§2 Heartbeat replies)",
    "pause partition cancel",
    spare="with one writer per session it comes before the push, and the next beat is whole again",
)
def mixed_beat() -> Sequence[Patch]:
    read = desired_state.read

    async def mutated(conn: Any, names: Sequence[str]) -> Any:
        older, newer = await read(conn, names), await read(conn, names)
        return {name: replace(older[name], version=newer[name].version) for name in older}

    return [patch.object(desired_state, "read", mutated)]


@mutant(
    "the desired version is raised in the transaction that changes the desired state (§2 Heartbeat replies)",
    "weather pause",
)
def version_not_raised() -> Sequence[Patch]:
    return [carried_out(agents.raise_desired_versions, nothing())]


@mutant(
    "a lease is begun at most once in a host's life (§2 Heartbeat replies)",
    "weather",
    spare="a start is fenced, and a lease that was listed comes without its assignment",
)
def begun_again() -> Sequence[Patch]:
    def mutated(held: Any, desired: Mapping[str, DesiredLease], begun: Any = frozenset()) -> LeasePlan:
        return plan(held, desired)

    return [patch.object(supervising, "plan", mutated)]


@mutant("an agent that ends begins nothing more (§1, SIGUSR2)", "frozen_at_grant detach", ours=True)
def begun_while_ending() -> Sequence[Patch]:
    def mutated(self: Supervisor, work: Any) -> None:
        self._over, over = False, self._over
        spawn(self, work)
        self._over = over

    spawn = Supervisor._spawn
    return [patch.object(Supervisor, "_spawn", mutated)]


@mutant("a stop is idempotent per lease (§2 Verbs, S10)", "pause leave")
def stop_applied_twice() -> Sequence[Patch]:
    stop = KillDeadlines.stop

    def mutated(self: KillDeadlines, now: float, grace: float, reason: str) -> bool:
        stop(self, now, grace, reason)
        return True

    return [patch.object(KillDeadlines, "stop", mutated)]


@mutant(
    "nothing is begun on slots that something here still has (§2 Grants, S9)",
    "weather pause cancel requeue",
    spare="the grant looks under lock at what the last heartbeat lists",
)
def busy_slots_ignored() -> Sequence[Patch]:
    return [patch.object(Supervisor, "_busy", lambda self, slots: False)]


# Sessions


@mutant(
    "a renewal compares the session id (§2 Sessions)",
    "cloned agent_frozen partition",
    spare="a late heartbeat of a session that is over puts off a lapse by a TTL, once: its stream is told",
)
def renewal_without_session() -> Sequence[Patch]:
    return [patch.object(simulated_leases, "_has_session", lambda *_: True)]


@mutant(
    "only leases in `held` are renewed (§2 Sessions)",
    "power_cut",
)
def renewal_by_name() -> Sequence[Patch]:
    heartbeat = REPERTOIRE[agents.record_heartbeats]

    async def mutated(ex: Execution, heartbeats: Sequence[Any]) -> Any:
        of_them = [place for pulse in heartbeats for place in ex.where("places", "agent", pulse.agent)]
        unended = [place for place in of_them if place["end_time"] is None]
        await ex.update("places", unended, expire_time=ex.now + timedelta(seconds=TEST.ttl))
        return await heartbeat(ex, heartbeats)

    return [carried_out(agents.record_heartbeats, mutated)]


@mutant("a heartbeat of an older session changes nothing (§2 Sessions)", "line_stalls database_slow")
def beats_of_older_sessions() -> Sequence[Patch]:
    heartbeat = REPERTOIRE[agents.record_heartbeats]

    async def mutated(ex: Execution, heartbeats: Sequence[Any]) -> Any:
        rows = [ex.get("agents", pulse.agent) for pulse in heartbeats]
        taken = [
            replace(pulse, session_id=row["session_id"]) for pulse, row in zip(heartbeats, rows, strict=True) if row
        ]
        return await heartbeat(ex, taken)

    return [carried_out(agents.record_heartbeats, mutated)]


@mutant("a grant that its agent has not reported yet is not missing (§2 Sessions)", "detach")
def missing_too_soon() -> Sequence[Patch]:
    def mutated(place: Row, agent: Row) -> bool:
        return not simulated_leases.is_listed(place, agent)

    return [patch.object(simulated_leases, "is_lost", mutated), patch.object(simulated_wishes, "is_lost", mutated)]


@mutant("under `stop` another boot proves nothing: a clone looks like a reboot (§2 Sessions)", "cloned partition")
def clone_taken_for_reboot() -> Sequence[Patch]:
    def mutated(ex: Execution, places: Sequence[Row]) -> Iterator[Row]:
        for place in places:
            agent, lease = ex.get("agents", place["agent"]), ex.get("leases", place["lease_id"])
            unended = place["end_time"] is None and lease is not None and lease["end_time"] is None
            if agent and agent["session_id"] and unended and simulated_leases.is_lost(place, agent):
                yield place

    return [patch.object(simulated_leases, "_missing", mutated)]


@mutant("while the older session beats another boot of its name is refused (§2 Sessions, F21)", "cloned")
def clones_admitted() -> Sequence[Patch]:
    admit = session_commands.check_admission

    def mutated(row: Any, hello: Any, _: float) -> list[str]:
        return admit(row, hello, 0.0)

    return [patch.object(session_commands, "check_admission", mutated)]


@mutant("a replaced instance is refused from then on (§2 Sessions, F21)", "cloned agent_frozen host_frozen")
def replaced_come_back() -> Sequence[Patch]:
    admit = session_commands.check_admission

    def mutated(row: Any, hello: Any, within: float) -> list[str]:
        return admit({**row, "retired_instances": []}, hello, within)

    return [patch.object(session_commands, "check_admission", mutated)]


@mutant(
    "a hello that a later one of its instance has overtaken is refused (§2 Sessions, F17)",
    "weather replica_killed partition",
    ours=True,
)
def late_hellos_taken() -> Sequence[Patch]:
    admit = session_commands.check_admission

    def mutated(row: Any, hello: Any, within: float) -> list[str]:
        return admit(row, replace(hello, dial=0), within)

    return [patch.object(session_commands, "check_admission", mutated)]


@mutant("a heartbeat that a later one has overtaken says nothing (§2 Sessions, F17)", "weather", ours=True)
def overtaken_heartbeats_heard() -> Sequence[Patch]:
    return [patch.object(live_sessions.LiveSession, "_is_newest", lambda *_: True)]


# Fences


async def _any_lease(conn: Any, lease_id: UUID) -> runs.RunRow:
    """Like runs.lock_by_lease, for leases that are over too."""
    run_id = await leases.find_run(conn, lease_id)
    if run_id is None:
        raise LeaseLost
    run = await runs.lock(conn, run_id)
    if run.lease is not None and run.lease.id == lease_id:
        return run
    return replace(run, lease=LeaseRow.from_row(conn.database.storage.tables["leases"][lease_id]))


@mutant("the registry accepts only the current lease (§2 Fencing, S2)", "partition host_frozen")
def unfenced_publish() -> Sequence[Patch]:
    return [patch.object(checkpoint_commands, "runs", Instead(runs, lock_by_lease=_any_lease))]


@mutant("a completion is the current lease's (§2 The lease, S2)", "partition host_frozen")
def unfenced_completion() -> Sequence[Patch]:
    return [
        patch.object(lease_commands, "runs", Instead(runs, lock_by_lease=_any_lease)),
        patch.object(lease_commands, "_find_reported", nothing()),
    ]


@mutant("events of a lease that has ended are refused (§3, S2)", "partition host_frozen")
def unfenced_events() -> Sequence[Patch]:
    def all_of(ex: Execution, lease_ids: Any) -> list[Row]:
        found = (ex.get("leases", lease_id) for lease_id in sorted(set(lease_ids)))
        return [row for row in found if row is not None]

    return [
        patch.object(simulated_events, "_leases", all_of),
        patch.object(simulated_events, "_has_not_ended", lambda _: True),
    ]


@mutant("StartAttempt is fenced (§3, S2)", "frozen_at_grant")
def unfenced_start() -> Sequence[Patch]:
    async def mutated(db: Any, lease_id: UUID, node: int, checkpoint_id: UUID | None, skipped: Any) -> None:
        async with db.transaction() as conn:
            run = await _any_lease(conn, lease_id)
            if not run.current_lease.started:
                await lease_commands._start(conn, run, checkpoint_id, skipped)

    return [patch.object(lease_commands, "start", mutated)]


# Events and checkpoints


@mutant(
    "the head moves only once the events before it are stored (§3, S5)",
    "failover",
)
def head_before_events() -> Sequence[Patch]:
    return [patch.object(leases, "check_cursors", nothing())]


@mutant("after a fallback a step counts that is greater than its own lease's last (§4, S5)", "damaged power_cut")
def head_behind_a_fallback() -> Sequence[Patch]:
    move = REPERTOIRE[checkpoints.move_head]

    async def mutated(ex: Execution, run_id: str, checkpoint_id: UUID) -> bool:
        new = ex.get("checkpoints", checkpoint_id)
        others = [row for row in ex.where("checkpoints", "run_id", run_id) if row["complete"] and row != new]
        if new is None or any(row["step"] >= new["step"] for row in others):
            return False
        return bool(await move(ex, run_id, checkpoint_id))

    return [carried_out(checkpoints.move_head, mutated)]


@mutant("the cursor moves in the transaction that stores the bytes (§3, S7)", "replica_killed commits_unknown")
def cursor_outside() -> Sequence[Patch]:
    append, move = event_commands.append_ranges, events.move_cursors
    moves: list[Any] = []

    async def collect(conn: Any, moved: Any) -> None:
        moves.append(moved)

    async def mutated(database: Any, stretches: Any, **more: Any) -> Any:
        answers = await append(database, stretches, **more)
        while moves:
            async with database.transaction() as conn:
                await move(conn, moves.pop(0))
        return answers

    return [patch.object(event_commands, "append_ranges", mutated), patch.object(events, "move_cursors", collect)]


@mutant("acked means stored: the answer comes after the commit (§3, S7)", "commits_unknown replica_killed")
def acked_before_commit() -> Sequence[Patch]:
    store = event_commands.Appender._store

    async def mutated(self: Any, batch: Any, *, wait: bool) -> Any:
        for stretch, future in batch:
            if not future.done():
                future.set_result(stretch.end)
        return await store(self, batch, wait=wait)

    return [patch.object(event_commands.Appender, "_store", mutated)]


@mutant("a stretch beyond the cursor is a gap (§3, S7)", "failover replica_killed")
def gaps_taken() -> Sequence[Patch]:
    take = event_commands._AppendBatch.take

    def mutated(self: Any, stretch: Any) -> Any:
        self.cursors[stretch.key] = max(self.cursors.get(stretch.key, 0), stretch.offset)
        return take(self, stretch)

    return [patch.object(event_commands._AppendBatch, "take", mutated)]


@mutant("what overlaps the cursor is taken once (§3, S7)", "weather replica_killed")
def overlaps_taken() -> Sequence[Patch]:
    take = event_commands._AppendBatch.take

    def mutated(self: Any, stretch: Any) -> Any:
        stored = self.cursors.get(stretch.key, 0)
        if stretch.offset < stored:
            self.cursors[stretch.key] = stretch.offset
        return take(self, stretch)

    return [patch.object(event_commands._AppendBatch, "take", mutated)]


@mutant("a start takes later points and checkpoints of earlier attempts off the curve (§3, S6)", "power_cut")
def nothing_superseded() -> Sequence[Patch]:
    return [carried_out(checkpoints.supersede, nothing(0)), carried_out(checkpoints.cut_curves, nothing())]


@mutant("a resume takes the newest that is sound (§4, S6)", "power_cut")
def resume_from_the_oldest() -> Sequence[Patch]:
    choose = resume.choose_checkpoint

    async def mutated(offered: Sequence[Any], *args: Any, **more: Any) -> Any:
        return await choose(list(reversed(offered)), *args, **more)

    return [patch.object(setup, "choose_checkpoint", mutated)]


@mutant("the newest with a copy beyond its host stays, however old it is (§4, S6)", "store_away")
def only_copy_let_go() -> Sequence[Patch]:
    needed = retention._find_required

    def mutated(*args: Any) -> Any:
        return (pair for pair in needed(*args) if pair[1] != "the newest with a copy beyond its host")

    return [patch.object(retention, "_find_required", mutated)]


@mutant(
    "a checkpoint is registered only by an attempt that said what it resumes from (§3, S6)",
    "failover",
    spare="events come before their checkpoint, and none is taken before the start",
)
def register_before_start() -> Sequence[Patch]:
    lock_by_lease = runs.lock_by_lease

    async def mutated(conn: Any, lease_id: UUID) -> runs.RunRow:
        run = await lock_by_lease(conn, lease_id)
        return replace(run, lease=replace(run.current_lease, started=True))

    return [patch.object(checkpoint_commands, "runs", Instead(runs, lock_by_lease=mutated))]


@mutant("events are taken only of an attempt that said what it resumes from (§3, S6)", "failover", ours=True)
def events_before_start() -> Sequence[Patch]:
    writer = simulated_events._writer

    def mutated(*args: Any) -> Any:
        return replace(writer(*args), started=True)

    return [patch.object(simulated_events, "_writer", mutated)]


# Grants


@mutant("one unended lease per slot: grants are guarded writes (§2 Grants, S9)", "detach")
def slots_not_taken() -> Sequence[Patch]:
    return [carried_out(leases.take_slots, nothing())]


@mutant(
    "a grant checks that the agent's session and its readiness are as planned (§2 Grants)",
    "agent_frozen power_cut",
    spare="a grant on an agent that is gone is missing, or lapses: it costs time",
)
def grants_unchecked() -> Sequence[Patch]:
    return [patch.object(lease_commands, "_check_agents", nothing())]


# Failover and restore


class _Reusing:
    """A failover that forgets which ids were drawn."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}
        self.snapshot, self.restore = Storage.snapshot, Storage.restore

    def take(self, storage: Storage) -> Snapshot:
        taken = self.snapshot(storage)
        self.states[id(taken.tables)] = storage._random.getstate()
        return taken

    def put_back(self, storage: Storage, taken: Snapshot) -> None:
        self.restore(storage, taken)
        storage._random.setstate(self.states[id(taken.tables)])


@mutant("a lease id is random and never reused, after a failover neither (§2 The lease, S1)", "failover")
def ids_reused() -> Sequence[Patch]:
    reusing = _Reusing()
    return [
        patch.object(Storage, "snapshot", lambda self: reusing.take(self)),
        patch.object(Storage, "restore", lambda self, taken: reusing.put_back(self, taken)),
    ]


@mutant("after a failover no `stop` run is granted for one TTL (§2 Failover, S3)", "failover")
def stop_granted_after_failover() -> Sequence[Patch]:
    return [
        carried_out(deployment.withhold_stop_runs, nothing()),
        carried_out(deployment.read_withholding, nothing((False, None))),
    ]


@mutant(
    "after a failover places last a full TTL (§2 Failover)",
    "failover",
    spare="the reaper's tick is as old as the expiries: the outage grace covers them",
)
def places_not_extended() -> Sequence[Patch]:
    return [carried_out(deployment.extend_places, nothing())]


@mutant("after a failover every session ends (§2 Failover)", "failover")
def sessions_outlive_failover() -> Sequence[Patch]:
    return [patch.object(session_commands, "end_all_sessions", nothing())]


@mutant("a database knows which it is from its migration on (§2 Failover, S3)", "", ours=True, first=7234)
def unknown_until_first_look() -> Sequence[Patch]:
    return [patch.object(Snapshot, "migrated", lambda self, identity: self)]


@mutant(
    "in a restored copy all leases end (§2 Failover)",
    "restored",
    spare="it is for a copy that runs beside its original, which is not simulated",
)
def leases_outlive_restore() -> Sequence[Patch]:
    return [patch.object(session_commands, "_end_restored", nothing())]


@mutant("what a failover lost is sent again: the welcome says what the coordinator has (§2 Failover)", "failover")
def welcome_unheard() -> Sequence[Patch]:
    def mutated(self: Any, record: Any) -> None:
        for source in self.sources.values():
            source.sync(source.acked)

    return [patch.object(Attempt, "sync", mutated)]


@mutant("an attempt's first write is said again when a failover lost it (§2 Failover, S6)", "failover", ours=True)
def first_write_not_repeated() -> Sequence[Patch]:
    return [patch.object(StartReport, "sync", lambda self, started: None)]


@mutant("an end waits for the checkpoints that a failover lost (§2 Failover, S5)", "failover", ours=True)
def end_before_checkpoints() -> Sequence[Patch]:
    return [patch.object(checkpoints, "check_registered", nothing()), patch.object(Attempt, "_wait_stored", nothing())]


@mutant("a session that is not the agent's own is told so (§2 Sessions)", "cloned agent_frozen host_frozen")
def foreign_wishes_obeyed() -> Sequence[Patch]:
    def tell(self: Any, desired: Any, sequence: int) -> Any:
        self._sent_version = desired.version
        return live_sessions.Reply(replace(desired, session_id=self.welcome.session_id), sequence)

    return [patch.object(live_sessions.LiveSession, "_reply", tell)]
