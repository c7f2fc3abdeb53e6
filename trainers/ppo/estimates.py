"""What the tokens of a completion are worth: pure functions of tensors that are (rows, tokens) unless said
otherwise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def completion_mask(ids: Tensor, ends: Tensor) -> Tensor:
    """Return True for the tokens of a completion: all up to and including the first of `ends` (token ids, one
    dimension).
    """
    ended = torch.isin(ids, ends).int()
    return ended.cumsum(dim=1) - ended == 0


def spread_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return the reward at each token: the cost of diverging from the reference, and at the last token the score as
    well (Ziegler et al. 2019, section 2).

    `scores` is (rows,); every row of `mask` has a True.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def estimate_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages by generalized advantage estimation (Schulman et al. 2015, arXiv:1506.02438, equation 16), and
    the returns that values are fitted to (advantage plus value). The value after the last token is 0, and so is
    everything outside the mask.
    """
    found = torch.zeros_like(rewards)
    after = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for at in range(rewards.shape[1] - 1, -1, -1):
        error = rewards[:, at] + gamma * next_value - values[:, at]
        after = torch.where(mask[:, at], error + gamma * lam * after, 0.0)
        next_value = torch.where(mask[:, at], values[:, at], 0.0)
        found[:, at] = after
    return found, torch.where(mask, found + values, 0.0)


def sum_moments(values: Tensor, mask: Tensor) -> Tensor:
    """Return count, sum and sum of squares of the values in the mask, to be added up over processes. (3,), double."""
    kept = torch.where(mask, values.double(), 0.0)
    return torch.stack([mask.sum().double(), kept.sum(), (kept**2).sum()])


def mean_and_variance(found: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance of what `sum_moments` summed."""
    count, total, squares = found
    mean = total / count
    return mean, (squares - count * mean**2) / (count - 1).clamp(min=1)


def whiten(values: Tensor, mask: Tensor, found: Tensor, *, centered: bool = True) -> Tensor:
    """Scale by the given moments to a variance of 1, and to a mean of 0 where `centered`. 0 outside the mask."""
    mean, variance = mean_and_variance(found)
    scaled = (values.double() - mean) * torch.rsqrt(variance.clamp(min=0) + 1e-8)
    return torch.where(mask, scaled if centered else scaled + mean, 0.0).to(values.dtype)


@dataclass(slots=True)
class KLController:
    """The coefficient of the cost of diverging from the reference. With a `target` (nats per completion) it rises while
    completions diverge more, and falls while they diverge less: by at most 20 % over `horizon` completions (Ziegler et
    al. 2019).
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """Adjust the coefficient after `completions` completions that diverged by `kl` nats in the mean."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * completions / self.horizon
