"""The losses of policy and values: pure functions that return a number for each token, (rows, tokens), for the caller
to mask.
"""

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of the tokens `ids`. `logits` is (rows, tokens, vocabulary)."""
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[..., None]).squeeze(-1)


def clipped_policy_loss(new: Tensor, old: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Return the negated clipped surrogate (Schulman et al. 2017, equation 7), and where clipping took effect.

    `new` and `old` are log-probabilities of the sampled tokens.
    """
    ratio = torch.exp(new - old)
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped), clipped > free


def clipped_value_loss(new: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Return half the squared error of values that may move at most `cliprange` from the rollout's, and where that
    limit took effect (Huang et al. 2024, detail "value function loss clipping").
    """
    held = torch.minimum(torch.maximum(new, old - cliprange), old + cliprange)
    free, clipped = (new - returns) ** 2, (held - returns) ** 2
    return 0.5 * torch.maximum(free, clipped), clipped > free


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the distribution over the last dimension, in nats."""
    logs = torch.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def estimate_divergence(policy: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Estimate KL(policy, reference) from log-probabilities of tokens that the policy sampled: `k1` is unbiased, `k3`
    unbiased and never negative (J. Schulman, "Approximating KL Divergence", 2020).
    """
    log_ratio = policy - reference
    return log_ratio if estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio
