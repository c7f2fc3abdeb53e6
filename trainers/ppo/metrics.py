"""What is logged: means over all processes, gathered between two logs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from trainers.ppo import estimates


class MetricWindow:
    """Notes of one mode (train or eval) go into `window`, by name."""

    def __init__(self, accelerator: Accelerator, window: dict[str, list[float]]) -> None:
        self._accelerator, self._window = accelerator, window

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._window[name].append(value)

    def sum_moments(self, values: Tensor, mask: Tensor) -> Tensor:
        """`estimates.moments` of all processes."""
        return self._sum(estimates.sum_moments(values, mask))

    def add_token_means(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Means over tokens of what there is one of for each."""
        sums = [mask.sum().double(), *((each.detach().double() * mask).sum() for each in values.values())]
        count, *totals = self._sum(torch.stack(sums)).tolist()
        self.add({name: total / count for name, total in zip(values, totals, strict=True)})

    def add_divergence(self, kl: Tensor, mask: Tensor) -> tuple[float, int]:
        """The mean over tokens is noted; the mean over completions is returned, with their number."""
        rows = torch.tensor(float(len(kl)), device=kl.device, dtype=torch.double)
        total, tokens, completions = self._sum(torch.stack([kl.double().sum(), mask.sum().double(), rows])).tolist()
        self.add({"kl": total / tokens})
        return total / completions, int(completions)

    def add_explained_variance(self, values: Tensor, returns: Tensor, mask: Tensor) -> None:
        """How much of the variance of returns the values explain; 0 when all are alike."""
        _, left = estimates.mean_and_variance(self.sum_moments(returns - values, mask))
        _, whole = estimates.mean_and_variance(self.sum_moments(returns, mask))
        self.add({"explained_variance": float(1 - left / whole) if whole > 0 else 0.0})

    def add_scores(self, names: Sequence[str], parts: Tensor, scores: Tensor, ended: Tensor, mask: Tensor) -> None:
        """Each reward's (rows, rewards), what they come to, and which completions came to an end."""
        parts, scores, ended = self._gather(parts), self._gather(scores), self._gather(ended)
        lengths = self._gather(mask.sum(dim=1)).double()
        means = parts.nanmean(dim=0).tolist()
        self.add({
            "reward": float(scores.mean()),
            "reward_std": float(scores.std()) if len(scores) > 1 else 0.0,
            **{f"rewards/{name}/mean": mean for name, mean in zip(names, means, strict=True)},
            "completions/mean_length": float(lengths.mean()),
            "completions/clipped_ratio": 1 - float(ended.double().mean()),
        })  # fmt: skip

    def take_means(self) -> dict[str, float]:
        """The mean of each since the last time."""
        found = {name: [value for value in values if value == value] for name, values in self._window.items()}
        self._window.clear()
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def _sum(self, values: Tensor) -> Tensor:
        return cast(Tensor, self._accelerator.reduce(values, "sum"))

    def _gather(self, values: Tensor) -> Tensor:
        return cast(Tensor, self._accelerator.gather(values))


def empty_windows() -> dict[str, dict[str, list[float]]]:
    """As TRL's trainers have them, so that they are saved and restored alike (`trainers.checkpoints.windows`)."""
    return {"train": defaultdict(list), "eval": defaultdict(list)}
