"""What is deleted of an attempt that is over, once its result and checkpoints are published.

`work/`, `staging/` and `resume/` are deleted. Sealed checkpoints stay until the coordinator schedules them for deletion
(see `checkpoints.removing`), except those that it never registered: nobody can resume from them. Events and logs stay.

The agent remembers each attempt that it started by a link in its own data folder. So the next agent knows what a host
that went down has left, also where the root is shared with other hosts, whose attempts it must not touch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.folder import AttemptFolder


@dataclass(frozen=True, slots=True)
class OpenAttempts:
    """The attempts that were started on this host and are not over. Blocking: call it in a thread."""

    folder: Path

    def add(self, lease_id: str, attempt: AttemptFolder) -> None:
        """Remember an attempt, before anything of it is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / lease_id
        link.unlink(missing_ok=True)
        link.symlink_to(attempt.path.absolute())

    def all(self) -> dict[str, AttemptFolder]:
        """Return the attempts by lease id."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return {name: AttemptFolder(Path(os.readlink(self.folder / name))) for name in names}

    def retire(self, lease_id: str) -> None:
        """Clean up an attempt that is over and that nobody will continue; one that was never started is not touched."""
        if (attempt := self.all().get(lease_id)) is None:
            return
        attempt.retire()
        attempt.discard_unregistered(set())
        (self.folder / lease_id).unlink(missing_ok=True)
