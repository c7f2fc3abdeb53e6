"""The options of `ppo`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class PPOConfig(TrainingArguments):
    r"""
    Options of proximal policy optimization, beside those of `TrainingArguments`.

    Args:
        model_init_kwargs (`dict[str, Any]`, *optional*):
            How the model is loaded; Relay fills it from `model_init`.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to train without dropout. With it, ratios of probabilities are noise from the first step on.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Minibatches that a rollout is cut into, each of them one optimizer step of
            `per_device_train_batch_size x gradient_accumulation_steps` completions per process.
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            How often each rollout is gone through.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Tokens of a completion, at most.
        max_prompt_length (`int`, *optional*):
            Tokens of a prompt, at most; of longer ones the end is kept.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of sampling; probabilities are taken at the same temperature.
        top_k (`int`, *optional*, defaults to `0`):
            Sample among so many likeliest tokens; 0 for all.
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample among the likeliest tokens that make up this share.
        missing_eos_penalty (`float`, *optional*):
            Taken off the score of a completion that does not come to an end.
        reward_weights (`list[float]`, *optional*):
            Of the rewards; Relay fills it from `rewards`.
        kl_coef (`float`, *optional*, defaults to `0.05`):
            What straying from the reference costs, per nat; 0 trains without a reference.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            How it is estimated: `k1`, unbiased, or `k3`, never negative as well.
        kl_target (`float`, *optional*):
            Steer the coefficient so that a completion strays by so many nats in the mean; fixed without it.
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Completions over which the coefficient may change by 20 %.
        cliprange (`float`, *optional*, defaults to `0.2`):
            How far a probability may move from the rollout's, as a ratio, before the policy is pushed no further.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            How far a value may move from the rollout's.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        entropy_coef (`float`, *optional*, defaults to `0.0`):
            Weight of an entropy bonus.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of later rewards, per token.
        lam (`float`, *optional*, defaults to `0.95`):
            Of generalized advantage estimation.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether rewards are scaled to a variance of 1 over the rollout.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether advantages are scaled to mean 0 and variance 1 over the rollout.
        shuffle_dataset (`bool`, *optional*, defaults to `True`):
            Whether prompts are drawn in random order.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    model_init_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "How the model is loaded."})
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to train without dropout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Minibatches of a rollout."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "How often each rollout is gone through."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of a completion, at most."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Tokens of a prompt, at most."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampling."})
    top_k: int = field(default=0, metadata={"help": "Sample among so many likeliest tokens; 0 for all."})
    top_p: float = field(default=1.0, metadata={"help": "Sample among the likeliest tokens of this share."})
    missing_eos_penalty: float | None = field(default=None, metadata={"help": "For completions without an end."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Of the rewards."})
    kl_coef: float = field(default=0.05, metadata={"help": "What straying from the reference costs, per nat."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1 or k3.", "choices": ["k1", "k3"]})
    kl_target: float | None = field(default=None, metadata={"help": "Nats per completion to steer for."})
    kl_horizon: int = field(default=10_000, metadata={"help": "Completions over which it changes by 20 %."})
    cliprange: float = field(default=0.2, metadata={"help": "Of the policy's ratios."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Of the values."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of an entropy bonus."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Of generalized advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether rewards are scaled to a variance of 1."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Whether advantages are whitened."})
    shuffle_dataset: bool = field(default=True, metadata={"help": "Whether prompts are drawn in random order."})

    def __post_init__(self) -> None:
        self.remove_unused_columns = False  # rewards read them
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # the value head is used, outside the wrapped forward pass
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name in ("num_mini_batches", "num_ppo_epochs", "max_completion_length", "kl_horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("temperature", "cliprange", "cliprange_value"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, found {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, found {getattr(self, name)}")
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must not be negative, found {self.kl_coef}")
        if self.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"kl_estimator must be k1 or k3, found {self.kl_estimator}")
        if self.kl_target is not None and (self.kl_target <= 0 or self.kl_coef == 0):
            raise ValueError("kl_target must be more than 0, and so must kl_coef")
        if self.deepspeed or self.fsdp:
            raise ValueError("ppo trains with DDP only; deepspeed and fsdp are not supported")

    @property
    def micro_batches(self) -> int:
        """Of a rollout, in one epoch, per process."""
        return self.num_mini_batches * self.gradient_accumulation_steps

    @property
    def rollout_rows(self) -> int:
        """Completions of a rollout, per process."""
        return self.micro_batches * self.per_device_train_batch_size
