"""PPO's metrics: means over all processes, gathered between two logs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from runfile import metric_names
from trainers.ppo import estimates


class MetricWindow:
    """Collects the metrics of one mode (train or eval) in `window`, by name."""

    def __init__(self, accelerator: Accelerator, window: dict[str, list[float]]) -> None:
        self._accelerator, self._window = accelerator, window

    def add(self, values: Mapping[str, float]) -> None:
        """Add one value of each metric."""
        for name, value in values.items():
            self._window[name].append(value)

    def sum_moments(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return `estimates.sum_moments` over all processes."""
        return self._sum(estimates.sum_moments(values, mask))

    def add_token_means(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add the means over tokens of values that each token has."""
        sums = [mask.sum().double(), *((each.detach().double() * mask).sum() for each in values.values())]
        count, *totals = self._sum(torch.stack(sums)).tolist()
        if count:
            self.add({name: total / count for name, total in zip(values, totals, strict=True)})

    def add_divergence(self, kl: Tensor, mask: Tensor) -> tuple[float, int]:
        """Add the mean KL divergence of a token. Return that of a completion, and the number of completions."""
        rows = torch.tensor(float(len(kl)), device=kl.device, dtype=torch.double)
        total, tokens, completions = self._sum(torch.stack([kl.double().sum(), mask.sum().double(), rows])).tolist()
        self.add({"kl": total / tokens})
        return total / completions, int(completions)

    def add_explained_variance(self, values: Tensor, returns: Tensor, mask: Tensor) -> None:
        """Add how much of the variance of the returns the values explain; 0 when all returns are equal."""
        _, left = estimates.mean_and_variance(self.sum_moments(returns - values, mask))
        _, whole = estimates.mean_and_variance(self.sum_moments(returns, mask))
        self.add({"explained_variance": float(1 - left / whole) if whole > 0 else 0.0})

    def add_scores(self, names: Sequence[str], parts: Tensor, scores: Tensor, ended: Tensor, mask: Tensor) -> None:
        """Add the mean of each reward, of the scores and of the lengths, and the shares of completions without an end,
        and without a score. `parts` is (rows, rewards), with NaN for no opinion; `scores` has NaN for no score.
        """
        parts, scores, ended = self._gather(parts), self._gather(scores), self._gather(ended)
        unscored = float(scores.isnan().double().mean())
        scores = scores[~scores.isnan()]
        lengths = self._gather(mask.sum(dim=1)).double()
        means = parts.nanmean(dim=0).tolist()
        self.add({
            "reward": float(scores.mean()),
            "reward_std": float(scores.std()) if len(scores) > 1 else 0.0,
            **{f"rewards/{name}/mean": mean for name, mean in zip(names, means, strict=True)},
            "completions/mean_length": float(lengths.mean()),
            "completions/clipped_ratio": 1 - float(ended.double().mean()),
            metric_names.UNSCORED: unscored,
        })  # fmt: skip

    def take_means(self) -> dict[str, float]:
        """Return the mean of each metric since the last call, and start anew."""
        found = {name: [value for value in values if value == value] for name, values in self._window.items()}
        self._window.clear()
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, "sum"))

    def _gather(self, values: Tensor) -> Tensor:
        """Gather the rows of all processes."""
        return cast(Tensor, self._accelerator.gather(values))


def empty_windows() -> dict[str, dict[str, list[float]]]:
    """Return empty windows in the form of TRL's, which checkpoints save and restore (`checkpoints.metric_windows`)."""
    return {"train": defaultdict(list), "eval": defaultdict(list)}
