"""How often a repository may be committed to. Pure: moments come from outside."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

COMMITS = 100  #: in an hour; the Hub refuses at about 128, and other hosts may commit to the same repository
HOUR = 3600.0


@dataclass(slots=True)
class Budget:
    """The commits that this host has made to each repository in the last hour."""

    limit: int = COMMITS
    _made: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def wait(self, repo: str, now: float) -> float:
        """Seconds until one more is within the budget."""
        made = self._made[repo]
        while made and made[0] <= now - HOUR:
            made.popleft()
        return made[-self.limit] + HOUR - now if len(made) >= self.limit else 0.0

    def spent(self, repo: str, now: float) -> None:
        """One more was made."""
        self._made[repo].append(now)
