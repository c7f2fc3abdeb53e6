"""What becomes of an attempt's bytes once it is over and its result and checkpoints are published: the disk goes back.

`work/`, `staging/` and `resume/` go. Sealed checkpoints stay as the run file says, counted over all attempts of the run
on this host; the one that the coordinator last named as head stays in any case. Events and logs stay.

What an agent has begun it remembers by a link in its own data folder. So one that comes after knows what was left by a
host that went down, also where the root is shared with other hosts, whose attempts are not its business.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.folder import AttemptFolder, RunFolder
from agent.wire import Assignment


@dataclass(frozen=True, slots=True)
class Begun:
    """Attempts begun on this host and not over. Blocking: call it in a thread."""

    folder: Path

    def add(self, lease_id: str, attempt: AttemptFolder) -> None:
        """Remember it, from before anything of it is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / lease_id
        link.unlink(missing_ok=True)
        link.symlink_to(attempt.path.absolute())

    def all(self) -> dict[str, AttemptFolder]:
        """By lease id."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return {name: AttemptFolder(Path(os.readlink(self.folder / name))) for name in names}

    def retire(self, root: Path, lease_id: str) -> None:
        """It is over, and nobody will take it up again. What was never begun is not touched."""
        begun = self.all()
        if (attempt := begun.pop(lease_id, None)) is None:
            return
        attempt.retire()
        if attempt.path.parent not in {each.path.parent for each in begun.values()}:
            # Otherwise one of the same run may be resuming from any of them; its own end sees to it.
            _retain(root, attempt)
        (self.folder / lease_id).unlink(missing_ok=True)


def _retain(root: Path, attempt: AttemptFolder) -> None:
    try:
        assignment = Assignment.load(attempt.assignment)
        last = assignment.run_file().checkpoint.keep.last
    except (OSError, ValueError):  # it was never written, or is another version's: nothing says what may go
        return
    run = RunFolder(root, assignment.run_id)
    run.retain_earlier(attempt, last, _head(run, assignment))


def _head(run: RunFolder, assignment: Assignment) -> Path | None:
    """Where the run's head, as the assignment says, would lie on this host."""
    for checkpoint in assignment.message.checkpoints[:1]:
        return run.attempt(checkpoint.attempt, checkpoint.lease.rpartition("/")[2]).checkpoint(checkpoint.step)
    return None
