"""Completions of a run's own model that it was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainers.models.generation import Turns


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that was trained on, and what each reward function gave for it; None where one did not judge it."""

    prompt: Turns
    completion: Turns
    rewards: Mapping[str, float | None] = field(default_factory=dict)
