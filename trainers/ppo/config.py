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
            Keyword arguments of loading the model; Relay fills them from `model_init`.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to train without dropout, which would make the first ratios of probabilities noise.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Number of minibatches that a rollout is cut into. Each is one optimizer step of
            `per_device_train_batch_size x gradient_accumulation_steps` completions per process.
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Number of epochs on each rollout.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Maximum length of a completion, in tokens.
        max_prompt_length (`int`, *optional*):
            Maximum length of a prompt, in tokens; of longer prompts the end is kept.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of sampling, more than 0; probabilities are computed at the same temperature.
        top_k (`int`, *optional*, defaults to `0`):
            Number of likeliest tokens to sample from; 0 samples from all.
        top_p (`float`, *optional*, defaults to `1.0`):
            Total probability, from 0 to 1, of the likeliest tokens to sample from.
        missing_eos_penalty (`float`, *optional*):
            Amount that is subtracted from the score of a completion without an end-of-sequence token.
        reward_weights (`list[float]`, *optional*):
            Weight of each reward; Relay fills them from `rewards`.
        kl_coef (`float`, *optional*, defaults to `0.05`):
            Coefficient of the KL penalty, per nat, at least 0; with 0 no reference model is loaded.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Estimator of the KL divergence: `k1`, which is unbiased, or `k3`, which is also never negative.
        kl_target (`float`, *optional*):
            Mean KL divergence of a completion, in nats, that the coefficient is adapted to; without it the
            coefficient is fixed.
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Number of completions over which the coefficient may change by 20 %.
        cliprange (`float`, *optional*, defaults to `0.2`):
            Clip range of the policy loss: how far the ratio of probabilities may move from 1, more than 0.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Clip range of the value loss: how far a value may move from the rollout's, more than 0.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Coefficient of the value loss.
        entropy_coef (`float`, *optional*, defaults to `0.0`):
            Coefficient of the entropy bonus.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount factor per token, from 0 to 1.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of generalized advantage estimation (Schulman et al., 2016), from 0 to 1.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether to scale rewards to variance 1 over the rollout.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether to scale advantages to mean 0 and variance 1 over the rollout.
        shuffle_dataset (`bool`, *optional*, defaults to `True`):
            Whether to draw prompts in random order.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Learning rate of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Number of steps between two logs."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of loading the model."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to train without dropout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Number of minibatches of a rollout."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Number of epochs on each rollout."})
    max_completion_length: int = field(default=256, metadata={"help": "Maximum length of a completion, in tokens."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Maximum length of a prompt, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling, more than 0."})
    top_k: int = field(default=0, metadata={"help": "Number of likeliest tokens to sample from; 0 for all."})
    top_p: float = field(default=1.0, metadata={"help": "Total probability of the tokens to sample from."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Amount subtracted from the score of a completion without an end."}
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weight of each reward."})
    kl_coef: float = field(default=0.05, metadata={"help": "Coefficient of the KL penalty, per nat."})
    kl_estimator: str = field(
        default="k1", metadata={"help": "Estimator of the KL divergence, k1 or k3.", "choices": ["k1", "k3"]}
    )
    kl_target: float | None = field(
        default=None, metadata={"help": "KL divergence per completion to adapt the coefficient to, in nats."}
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Number of completions over which the coefficient changes by 20 %."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value loss."})
    vf_coef: float = field(default=0.1, metadata={"help": "Coefficient of the value loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Coefficient of the entropy bonus."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether to scale rewards to variance 1."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Whether to whiten advantages."})
    shuffle_dataset: bool = field(default=True, metadata={"help": "Whether to draw prompts in random order."})

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
        """Number of micro-batches of a rollout in one pass, per process."""
        return self.num_mini_batches * self.gradient_accumulation_steps

    @property
    def rollout_rows(self) -> int:
        """Number of completions of a rollout, per process."""
        return self.micro_batches * self.per_device_train_batch_size
