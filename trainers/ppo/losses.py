"""What moves policy and values. Pure; each gives numbers for every token, (rows, tokens), for the caller to mask."""

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Of the tokens taken. `logits` is (rows, tokens, vocabulary)."""
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[..., None]).squeeze(-1)


def clipped_policy_loss(new: Tensor, old: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, negated (Schulman et al. 2017, equation 7), and where the clipped one is what counts.

    `new` and `old` are log-probabilities of the tokens taken.
    """
    ratio = torch.exp(new - old)
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped), clipped > free


def clipped_value_loss(new: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of values that may not move further than `cliprange` from those of the rollout, and where
    that limit is what counts (Huang et al. 2024, detail "value function loss clipping").
    """
    held = torch.minimum(torch.maximum(new, old - cliprange), old + cliprange)
    free, clipped = (new - returns) ** 2, (held - returns) ** 2
    return 0.5 * torch.maximum(free, clipped), clipped > free


def entropy(logits: Tensor) -> Tensor:
    """Of the distribution over the last dimension, in nats."""
    logs = torch.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def estimate_divergence(policy: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(policy, reference) from the log-probabilities of tokens that the policy took: `k1` is unbiased,
    `k3` unbiased and never negative (J. Schulman, "Approximating KL Divergence", 2020).
    """
    log_ratio = policy - reference
    return log_ratio if estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio
