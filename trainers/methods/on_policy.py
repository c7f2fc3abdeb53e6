"""Library trainers that learn from completions that they generate themselves."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

from transformers import PreTrainedModel

from trainers.errors import ConfigError
from trainers.resumable import ResumableTrainer
from trainers.rollout import Rollout

#: State of TRL's adaptive entropy bonus.
_ENTROPY_STATE = ("entropy_coef", "_last_world_entropy", "_entropy_window_stats")


class OnPolicyTrainer(ResumableTrainer):
    """A trainer that generates completions for several micro-batches or steps at once. Those that it has not trained on
    yet are part of the checkpoint.
    """

    def collect_extra_state(self) -> dict[str, Any]:
        inner: Any = self
        state = {name: getattr(inner, name) for name in ("_step", *_ENTROPY_STATE) if hasattr(inner, name)}
        served = getattr(self.args, "steps_per_generation", self.args.gradient_accumulation_steps)
        if inner._step % (served * getattr(inner, "num_iterations", 1)):
            state["_buffered_inputs"] = inner._buffered_inputs
        return state

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Generate in the type that the trainer computes in. TRL would take the weights as they are, and fail where
        those that are trained have another type than the others.
        """
        library, options = cast(Any, super()), cast(Any, self.args)
        with self.during("generating"), nullcontext() if options.use_vllm else self.accelerator.autocast():
            return library._generate_single_turn(*args, **kwargs)

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        steps = self.state.global_step * self.args.gradient_accumulation_steps
        for name, value in {"_step": steps, **state}.items():
            setattr(self, name, value)


class RewardedTrainer(OnPolicyTrainer):
    """What TRL's GRPOTrainer and RLOOTrainer have in common."""

    _trained_on = False  #: the newest completions are the training's, not an evaluation's

    def __init__(self, *, model: Any, args: Any, **rest: Any) -> None:
        if args.beta and isinstance(model, PreTrainedModel):
            raise ConfigError(
                "options.beta: TRL would compare with the base model, and not with the adapter that model.init_from "
                "merged into it; write lora to train the adapter on, or begin from a model that is merged"
            )
        library: Any = super()
        library.__init__(model=model, args=args, **rest)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        model, library = cast(Any, self.model), cast(Any, super())
        self._trained_on = bool(model.training)
        return library._generate_and_score_completions(inputs)

    def newest_rollouts(self) -> Sequence[Rollout]:
        """Return the newest completions of the training. TRL keeps the newest of all processes, which may be an
        evaluation's.
        """
        logs = cast(Any, self)._logs
        if not self._trained_on:
            return ()
        rewards = {name: list(values) for name, values in logs["rewards"].items()}
        return [
            Rollout(prompt, completion, {name: _opinion_or_none(values[at]) for name, values in rewards.items()})
            for at, (prompt, completion) in enumerate(zip(logs["prompt"], logs["completion"], strict=True))
        ]


def _opinion_or_none(reward: float) -> float | None:
    """Return None for NaN, which TRL records for a function that returned None."""
    return None if math.isnan(reward) else reward
