"""The marker in the message of each of Relay's commits, and whether a commit may be made. Pure.

A marker names the run, attempt, lease and step of a commit. By it a commit is found whose reply was lost, and a branch
that somebody else has moved is distinguished from one that is still ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

#: model: a checkpoint's model; result: the model of a finished run; state: a trainer's whole state; output: a run's
#: result as the registry has it; free: a deletion.
MarkerKind = Literal["model", "result", "state", "output", "free"]
_LINE = re.compile(r"^Relay-(Kind|Run|Attempt|Lease|Step): (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CommitMarker:
    """What one of Relay's commits contains."""

    kind: MarkerKind
    run: str
    attempt: int
    lease: str
    step: int

    @property
    def trailer(self) -> str:
        """The lines at the end of the commit's message."""
        return "\n".join(f"Relay-{name.capitalize()}: {value}" for name, value in asdict(self).items())

    @classmethod
    def parse(cls, message: str) -> CommitMarker | None:
        """Return the marker in a commit's message, or None when the commit is not Relay's."""
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
    """A commit in a branch's history."""

    id: str
    title: str
    author: str
    marker: CommitMarker | None
    time: float = 0.0  #: seconds since the epoch, by the Hub's clock

    @property
    def description(self) -> str:
        """The author, the commit and its title, for messages."""
        return f"{self.author or 'somebody'} ({self.id[:8]}, {self.title!r})"


@dataclass(frozen=True, slots=True)
class AlreadyCommitted:
    """The commit has been made already."""

    commit: str


@dataclass(frozen=True, slots=True)
class MayCommit:
    """The commit may be made, with this parent."""

    parent: str


@dataclass(frozen=True, slots=True)
class BranchMoved:
    """Somebody else has moved the branch, which is never overwritten."""

    by: HubCommit
    newer: bool = False  #: by a newer commit of the same run, which replaces ours


def decide_commit(
    ours: CommitMarker, history: Sequence[HubCommit], expected: str | None, fresh: str | None = None
) -> AlreadyCommitted | MayCommit | BranchMoved:
    """Return whether `ours` may be committed to a branch with this history (newest first, not empty).

    `expected` is the newest commit of ours that we know of, `fresh` the commit at which a branch was just created.
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
    """Return whether their commit is newer: of a later attempt, or a later model of the same attempt.

    Of one attempt's models the later step is newer, and the result last. Its states are kept under tags, in any order.
    """
    if theirs.lease != ours.lease or theirs.kind not in ("model", "result"):
        return theirs.attempt > ours.attempt
    return (theirs.step, theirs.kind == "result") > (ours.step, ours.kind == "result")


def _since(history: Sequence[HubCommit], expected: str | None) -> Sequence[HubCommit]:
    """Return the commits after `expected`; only the head where that commit is not in the history."""
    ids = [seen.id for seen in history]
    return history[: ids.index(expected)] if expected in ids else history[:1]
