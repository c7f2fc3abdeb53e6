"""Leases as a host sees them: which are desired, which are held, how long each may be trusted. Pure: no clock, no wire.

A heartbeat reply carries the whole desired state, so what to do is set arithmetic between the held and the desired
leases; a reply that is lost, doubled or reordered changes nothing. Three rules keep that safe:

  * A reply of another session, or with a lower desired version than one seen before, is ignored.
  * A lease is started at most once in a host's life, and a stop is forwarded only when it is new or stronger (S10).
  * Trust counts from the moment when the answered heartbeat was *sent*; no message ever shortens it. A lease that a
    reply names for the first time was granted after the previous reply was made, so its trust counts from the sending
    of the heartbeat that the previous reply answered.

This does not promise that nobody else trains. A host that is cut off under policy `continue` trains on, and only
the registry decides whose checkpoints count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from relay.timing import LeaseTiming


class StopReason(enum.IntEnum):
    """Why a lease must stop, from weak to strong; it only ever grows stronger."""

    NONE = 0
    PREEMPT = 1
    PAUSE = 2
    CANCEL = 3


@dataclass(frozen=True, slots=True)
class DesiredLease:
    """What the coordinator wants of one lease. `work` is what to run, until the coordinator has seen the lease held."""

    run: bool
    reason: StopReason = StopReason.NONE
    grace: float = 0.0  #: seconds a stopping trainer has before it is killed
    work: object = None


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The whole desired state. `answers` is the number of the answered heartbeat, 0 when the reply was pushed."""

    session_id: str
    version: int
    answers: int
    desired: Mapping[str, DesiredLease]


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """The steps from the held leases to the desired ones."""

    start: frozenset[str] = frozenset()
    stop: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()  #: no longer desired: kill, keep the bytes, forget
    decline: frozenset[str] = frozenset()  #: must stop before it was ever started: there is only the end to report


def plan(held: Iterable[str], desired: Mapping[str, DesiredLease], started: frozenset[str] = frozenset()) -> LeasePlan:
    """Return what to do with each lease.

    `started` are leases that were started here and are no longer held: they are over, whatever a late reply says.
    """
    held = frozenset(held)
    new = desired.keys() - held - started
    return LeasePlan(
        start=frozenset(lease for lease in new if desired[lease].run and desired[lease].work is not None),
        stop=frozenset(lease for lease in held & desired.keys() if not desired[lease].run),
        drop=held - desired.keys(),
        decline=frozenset(lease for lease in new if not desired[lease].run),
    )


@dataclass(frozen=True, slots=True)
class Term:
    """The time for which one lease may be trusted."""

    t0: float  #: seconds on CLOCK_BOOTTIME at which the heartbeat was sent that renewed it last

    def renew(self, sent: float) -> Term:
        """Return the term after a reply to the heartbeat sent at `sent`; it is never shorter."""
        return Term(max(self.t0, sent))

    def stop_at(self, timing: LeaseTiming) -> float:
        """Return when the shim begins to kill under policy `stop`, in seconds on CLOCK_BOOTTIME."""
        return timing.stop_after(self.t0)


@dataclass(frozen=True, slots=True)
class SessionState:
    """One session as this host sees it: which heartbeat replies count, and what they renew.

    `anchor` is the sending time of the newest hello or heartbeat that was answered with the desired state; `sent`
    holds the heartbeats without an answer, each with its sending time and the leases it listed.
    """

    session_id: str
    anchor: float
    reattached: frozenset[str] = (
        frozenset()
    )  #: leases that the hello named; they are older than it, so only a heartbeat renews them
    version: int = 0
    sent: Mapping[int, tuple[float, frozenset[str]]] = field(default_factory=dict)

    def record_sent(self, sequence: int, at: float, held: Iterable[str]) -> SessionState:
        """Return the state after heartbeat `sequence`, which lists `held`, was sent at `at`."""
        return replace(self, sent={**self.sent, sequence: (at, frozenset(held))})

    def accepts(self, reply: HeartbeatReply) -> bool:
        """Return whether the reply belongs to this session and is not older than the newest one."""
        return reply.session_id == self.session_id and reply.version >= self.version

    def apply_reply(self, reply: HeartbeatReply, terms: Mapping[str, Term]) -> tuple[SessionState, dict[str, Term]]:
        """Return the state, and the terms of the desired leases, after a reply that `accepts` approved."""
        after = {lease: self._term(lease, reply.answers, terms.get(lease)) for lease in reply.desired}
        state = replace(self.record_answer(reply.answers), version=reply.version)
        return state, {lease: term for lease, term in after.items() if term is not None}

    def _term(self, lease: str, answers: int, term: Term | None) -> Term | None:
        at, listed = self.sent.get(answers, (self.anchor, frozenset[str]()))
        if lease in listed:
            return (term or Term(at)).renew(at)
        if term is None and lease not in self.reattached:
            return Term(self.anchor)
        return term

    def record_answer(self, sequence: int) -> SessionState:
        """Return the state after a reply to heartbeat `sequence`; earlier heartbeats need no answer any more."""
        at, _ = self.sent.get(sequence, (self.anchor, None))
        return replace(self.record_wait(sequence), anchor=max(self.anchor, at))

    def record_wait(self, sequence: int) -> SessionState:
        """Return the state after a Wait, which answers heartbeat `sequence` without having read the desired state.

        The anchor stays: a lease that was granted before the Wait may yet be named for the first time.
        """
        if sequence not in self.sent:
            return self
        return replace(self, sent={number: entry for number, entry in self.sent.items() if number > sequence})
