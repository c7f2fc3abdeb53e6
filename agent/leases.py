"""Leases as a host sees them: what is wished, what is held, how long it may be trusted. Pure: no clock, no wire.

A beat carries the whole wish, so what to do is set arithmetic between what is held and what is wished; a lost, doubled
or reordered beat changes nothing. Three rules keep that safe:

  * A beat of another session, or of a lower wish version than one seen before, is ignored.
  * A lease is begun at most once in a host's life, and a stop is passed on only when it is new or sharper (S10).
  * Trust counts from the moment the heartbeat that was answered was *sent*; no message ever shortens it. A lease that
    a beat names for the first time was granted after the beat before it was made, so its trust counts from the sending
    of what that earlier one answered.

What this does not promise: that nobody else trains. A host that is cut off under policy `continue` trains on, and only
the registry decides whose checkpoints count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from relay.timing import LeaseTiming


class StopReason(enum.IntEnum):
    """Why a lease is to be stopped, blunt to sharp. Only ever sharpens."""

    NONE = 0
    PREEMPT = 1
    PAUSE = 2
    CANCEL = 3


@dataclass(frozen=True, slots=True)
class DesiredLease:
    """What is wished of one lease. `work` is what to run, as long as the coordinator has not seen the lease held."""

    run: bool
    reason: StopReason = StopReason.NONE
    grace: float = 0.0  #: seconds a stopping trainer has before it is killed
    work: object = None


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The whole wish. `answers` is the heartbeat it answers, 0 when it was pushed."""

    session_id: str
    version: int
    answers: int
    wishes: Mapping[str, DesiredLease]


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """What to do so that what is held becomes what is wished."""

    start: frozenset[str] = frozenset()
    stop: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()  #: gone: kill, keep the bytes, forget
    decline: frozenset[str] = frozenset()  #: to be stopped before it was ever begun: nothing to do but say so


def plan(held: Iterable[str], wished: Mapping[str, DesiredLease], begun: frozenset[str] = frozenset()) -> LeasePlan:
    """`begun` are leases that were begun here and are no longer held: over, whatever a late beat says of them."""
    held = frozenset(held)
    new = wished.keys() - held - begun
    return LeasePlan(
        start=frozenset(lease for lease in new if wished[lease].run and wished[lease].work is not None),
        stop=frozenset(lease for lease in held & wished.keys() if not wished[lease].run),
        drop=held - wished.keys(),
        decline=frozenset(lease for lease in new if not wished[lease].run),
    )


@dataclass(frozen=True, slots=True)
class Term:
    """How long one lease may be trusted."""

    t0: float  #: on CLOCK_BOOTTIME: when the heartbeat was sent that renewed it last

    def renewed(self, sent: float) -> Term:
        """The term after an answer to the heartbeat sent at `sent`; never shorter."""
        return Term(max(self.t0, sent))

    def stop_at(self, timing: LeaseTiming) -> float:
        """When the shim begins to kill under policy `stop`."""
        return timing.stop_after(self.t0)


@dataclass(frozen=True, slots=True)
class SessionState:
    """One session as this host sees it: which beats count, and what they renew.

    `anchor` is the sending time of the newest hello or heartbeat that was answered with what is wished; `sent` holds
    the heartbeats that were not answered yet, each with its sending time and the leases it listed.
    """

    session_id: str
    anchor: float
    reattached: frozenset[str] = frozenset()  #: leases the hello named: older than it, so only a heartbeat renews them
    version: int = 0
    sent: Mapping[int, tuple[float, frozenset[str]]] = field(default_factory=dict)

    def sending(self, sequence: int, at: float, held: Iterable[str]) -> SessionState:
        """A heartbeat leaves now."""
        return replace(self, sent={**self.sent, sequence: (at, frozenset(held))})

    def accepts(self, beat: HeartbeatReply) -> bool:
        """Whether the beat is of this session and not older than what is known."""
        return beat.session_id == self.session_id and beat.version >= self.version

    def hearing(self, beat: HeartbeatReply, terms: Mapping[str, Term]) -> tuple[SessionState, dict[str, Term]]:
        """The session, and the terms of the wished leases, after a beat that `accepts` took."""
        after = {lease: self._term(lease, beat.answers, terms.get(lease)) for lease in beat.wishes}
        heard = replace(self.answered(beat.answers), version=beat.version)
        return heard, {lease: term for lease, term in after.items() if term is not None}

    def _term(self, lease: str, answers: int, term: Term | None) -> Term | None:
        at, listed = self.sent.get(answers, (self.anchor, frozenset[str]()))
        if lease in listed:
            return (term or Term(at)).renewed(at)
        if term is None and lease not in self.reattached:
            return Term(self.anchor)
        return term

    def answered(self, sequence: int) -> SessionState:
        """A beat answered heartbeat `sequence`; what was sent before it needs no answer any more."""
        at, _ = self.sent.get(sequence, (self.anchor, None))
        return replace(self.waited(sequence), anchor=max(self.anchor, at))

    def waited(self, sequence: int) -> SessionState:
        """A wait answered it: nothing was read, so a lease granted before it may yet be named for the first time."""
        if sequence not in self.sent:
            return self
        return replace(self, sent={number: each for number, each in self.sent.items() if number > sequence})
