"""What becomes of an attempt's bytes once it is over and its result and checkpoints are published: the disk goes back.

`work/`, `staging/` and `resume/` go. Sealed checkpoints stay until the coordinator lets them go (see
`checkpoints.removing`), but for those that it never heard of: nobody can resume from them. Events and logs stay.

What an agent has begun it remembers by a link in its own data folder. So one that comes after knows what was left by a
host that went down, also where the root is shared with other hosts, whose attempts are not its business.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.folder import AttemptFolder


@dataclass(frozen=True, slots=True)
class OpenAttempts:
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

    def retire(self, lease_id: str) -> None:
        """It is over, and nobody will take it up again. What was never begun is not touched."""
        if (attempt := self.all().get(lease_id)) is None:
            return
        attempt.retire()
        attempt.discard_passed_over(set())
        (self.folder / lease_id).unlink(missing_ok=True)
