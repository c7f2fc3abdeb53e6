"""How much straying from the reference costs: a fixed coefficient, or one that is steered (Ziegler et al. 2019)."""

from dataclasses import dataclass


@dataclass(slots=True)
class KLControl:
    """The coefficient. With a `target` (nats per completion) it rises while completions stray further and falls while
    they stray less: by at most 20 % for every `horizon` completions.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """Completions strayed by `kl` nats in the mean."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * completions / self.horizon
