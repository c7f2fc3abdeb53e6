"""Trainers that learn from completions of their own."""

from typing import Any

from transformers import PreTrainedModel

from trainers.errors import ConfigError
from trainers.resumable import Resumable

#: What TRL's adaptive entropy bonus keeps between steps.
_ENTROPY = ("entropy_coef", "_last_world_entropy", "_entropy_window_stats")


class Generating(Resumable):
    """Completions are generated for several micro-batches or steps at once, and those that are yet to be trained on
    belong to the checkpoint.
    """

    def extra_state(self) -> dict[str, Any]:
        inner: Any = self
        state = {name: getattr(inner, name) for name in ("_step", *_ENTROPY) if hasattr(inner, name)}
        served = getattr(self.args, "steps_per_generation", self.args.gradient_accumulation_steps)
        if inner._step % (served * getattr(inner, "num_iterations", 1)):
            state["_buffered_inputs"] = inner._buffered_inputs
        return state

    def restore_extra(self, state: dict[str, Any]) -> None:
        steps = self.state.global_step * self.args.gradient_accumulation_steps
        for name, value in {"_step": steps, **state}.items():
            setattr(self, name, value)


class Rewarded(Generating):
    """What TRL's GRPOTrainer and RLOOTrainer have in common."""

    def __init__(self, *, model: Any, args: Any, **rest: Any) -> None:
        if args.beta and isinstance(model, PreTrainedModel):
            raise ConfigError(
                "options.beta: TRL would compare with the base model, and not with the adapter that model.init_from "
                "merged into it; write lora to train the adapter on, or begin from a model that is merged"
            )
        library: Any = super()
        library.__init__(model=model, args=args, **rest)
