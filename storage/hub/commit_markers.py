"""What Relay writes under each of its commits, and what follows from the commits that are there. Pure.

A mark says which run, attempt, lease and step a commit is of. It is how a lost reply is looked up, and how a branch
that somebody else has moved is told from one that is still ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

#: model: of a checkpoint; result: of a run that is through; state: a trainer's, whole; output: a run's result as it
#: stands in the registry; free: of what was taken out.
MarkerKind = Literal["model", "result", "state", "output", "free"]
_LINE = re.compile(r"^Relay-(Kind|Run|Attempt|Lease|Step): (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CommitMarker:
    """What one commit of Relay's is of."""

    kind: MarkerKind
    run: str
    attempt: int
    lease: str
    step: int

    @property
    def trailer(self) -> str:
        """As lines at the end of a commit's message."""
        return "\n".join(f"Relay-{name.capitalize()}: {value}" for name, value in asdict(self).items())

    @classmethod
    def parse(cls, message: str) -> CommitMarker | None:
        """The mark in a commit's message; None for a commit that is not Relay's."""
        said = {name.lower(): value for name, value in _LINE.findall(message)}
        try:
            kind = said["kind"]
            if kind not in get_args(MarkerKind):
                return None
            return cls(cast(MarkerKind, kind), said["run"], int(said["attempt"]), said["lease"], int(said["step"]))
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class HubCommit:
    """A commit of a branch's history."""

    id: str
    title: str
    author: str
    marker: CommitMarker | None
    time: float = 0.0  #: seconds since the epoch, by the Hub's clock

    @property
    def description(self) -> str:
        """Who did what, for people."""
        return f"{self.author or 'somebody'} ({self.id[:8]}, {self.title!r})"


@dataclass(frozen=True, slots=True)
class AlreadyCommitted:
    """This has been committed already."""

    commit: str


@dataclass(frozen=True, slots=True)
class MayCommit:
    """The branch is ours to move on from this commit."""

    parent: str


@dataclass(frozen=True, slots=True)
class BranchMoved:
    """Somebody else has moved the branch: theirs is never overwritten."""

    by: HubCommit
    newer: bool = False  #: with what is newer of the same run: ours is over


def decide_commit(
    ours: CommitMarker, history: Sequence[HubCommit], expected: str | None, fresh: str | None = None
) -> AlreadyCommitted | MayCommit | BranchMoved:
    """Whether `ours` may be committed on a branch with this history (newest first, not empty).

    `expected` is the commit of ours that was the newest when we last knew; `fresh` one that a branch was just begun at.
    """
    for seen in history:
        if seen.marker == ours:
            return AlreadyCommitted(seen.id)
    head = history[0]
    if head.id in (expected, fresh):
        return MayCommit(head.id)
    for seen in _since(history, expected):
        if seen.marker is None or seen.marker.run != ours.run:
            return BranchMoved(seen)
        if _is_newer(seen.marker, ours):
            return BranchMoved(seen, newer=True)
    return MayCommit(head.id)


def _is_newer(theirs: CommitMarker, ours: CommitMarker) -> bool:
    """A later attempt's is. Of one attempt's models that of a later step, and the result last; its states stay under
    their tags, whichever comes last."""
    if theirs.lease != ours.lease or theirs.kind not in ("model", "result"):
        return theirs.attempt > ours.attempt
    return (theirs.step, theirs.kind == "result") > (ours.step, ours.kind == "result")


def _since(history: Sequence[HubCommit], expected: str | None) -> Sequence[HubCommit]:
    """The commits that came after `expected`; only the head where that one is not known (any more)."""
    ids = [seen.id for seen in history]
    return history[: ids.index(expected)] if expected in ids else history[:1]
