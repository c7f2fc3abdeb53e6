"""Completions that a run's own model generated and that it was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainers.models.generation import Turns


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that was trained on, with the reward that each function gave, or None where a function gave none."""

    prompt: Turns
    completion: Turns
    rewards: Mapping[str, float | None] = field(default_factory=dict)
