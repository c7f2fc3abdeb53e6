"""PPO's trainer: a rollout, then minibatch epochs over it, in which each minibatch is one step of the library's
Trainer.

The Trainer does the order of data, accumulation, schedules, mixed precision, DDP, saving and resuming. A checkpoint
within a rollout includes what is left of it, and the KL coefficient.
"""

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, set_seed
from trl.trainer.utils import RepeatSampler

from trainers.checkpoints import SavedCheckpoint
from trainers.models.generation import Turns, decode_completions, find_end_tokens, generate_completions, tokenize_prompt
from trainers.ppo import estimates, losses, policy
from trainers.ppo.config import PPOConfig
from trainers.ppo.metrics import MetricWindow, empty_windows
from trainers.ppo.rollout import Reward, RewardScorer, RolloutBatch, RolloutBuffer
from trainers.resumable import ResumableTrainer
from trainers.rollout import Rollout

Row = dict[str, Any]


class PPOTrainer(ResumableTrainer):
    """Trains a policy by the rewards of its own completions, close to its initial weights.

    `model` is a folder or a loaded model; `ref_model` is the reference of a merged one. Rows have `prompt` (text or
    messages) and the columns that the rewards read. A reward is a function as TRL calls it, or a sequence classifier
    with its tokenizer in `reward_processing_classes`.
    """

    shared_state = ("kl_coef",)

    def __init__(
        self,
        *,
        model: Any,
        args: PPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        ref_model: Any = None,
        reward_funcs: Sequence[Reward] = (),
        reward_processing_classes: Sequence[Any] = (),
    ) -> None:
        tokenizer = processing_class or AutoTokenizer.from_pretrained(
            model if isinstance(model, str) else model.name_or_path
        )
        set_seed(args.seed)  # a new adapter is drawn
        policy_model, reference = _prepare_models(model, args, peft_config, ref_model)
        self.end_tokens = torch.tensor(find_end_tokens(policy_model, tokenizer))
        if not len(self.end_tokens):
            raise ValueError("the tokenizer has no token that ends a text (eos_token): completions would have no end")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = int(self.end_tokens[0])
        _require_prompts(args, len(train_dataset))
        self._metrics = empty_windows()
        self._kl_controller = estimates.KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self._buffer: RolloutBuffer | None = None
        self._position = 0  #: micro-batches taken so far, over all rollouts
        self._newest_rollouts: list[Rollout] = []
        super().__init__(
            model=policy_model,
            args=args,
            data_collator=_keep_rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
        self.model_accepts_loss_kwargs = False  # the loss is divided by tokens of the whole minibatch already
        self._reference = reference and reference.to(self.accelerator.device).eval().requires_grad_(False)
        self._scorer = RewardScorer(reward_funcs, reward_processing_classes, self.accelerator.device)
        weights = args.reward_weights or [1.0] * len(reward_funcs)
        self._weights = torch.tensor(weights, device=self.accelerator.device)

    @property
    def options(self) -> PPOConfig:
        """The options, typed."""
        return cast(PPOConfig, self.args)

    @property
    def _policy(self) -> Any:
        """The model without its wrapper."""
        return cast(Any, self.model)

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader whose batches are a whole rollout's prompts, each repeated for every micro-batch of it."""
        inner: Any = self
        loader: DataLoader[Any] = inner._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self.options.rollout_rows,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        return loader

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler: Sampler[int] = RepeatSampler(
            data_source=cast(Sized, self.train_dataset if dataset is None else dataset),
            mini_repeat_count=1,
            batch_size=self.options.rollout_rows * self.args.world_size,
            repeat_count=self.options.num_ppo_epochs * self.options.micro_batches,
            shuffle=self.options.shuffle_dataset,
            seed=self.args.seed,
        )
        return self.order_epochs(sampler)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Return the micro-batch that is due, and the number of tokens of its minibatch."""
        if not self._policy.training:
            return inputs
        every = self.options.num_ppo_epochs * self.options.micro_batches
        if self._position % every == 0 or self._buffer is None:
            self._buffer = self._shuffle_rollout(self._roll_out(inputs, "train"))
        share = self._buffer.micro_batch(
            self._position % every, self.options.per_device_train_batch_size, self.args.gradient_accumulation_steps
        )
        self._position += 1
        return share

    def _shuffle_rollout(self, batch: RolloutBatch) -> RolloutBuffer:
        """Draw the order in which each epoch goes through a rollout."""
        epochs, rows = self.options.num_ppo_epochs, batch.ids.shape[0]
        orders = torch.stack([torch.randperm(rows) for _ in range(epochs)]).to(batch.ids.device)
        tokens = batch.mask.sum(dim=1)[orders].view(epochs, self.options.num_mini_batches, -1).sum(dim=-1).double()
        return RolloutBuffer(batch, orders, cast(Tensor, self.accelerator.reduce(tokens, "sum")))

    # Rollouts

    @torch.no_grad()
    def _roll_out(self, rows: Sequence[Row], mode: str) -> RolloutBatch:
        """Complete the prompts, score the completions, and estimate what their tokens are worth."""
        ids, attention, width = self._generate([row["prompt"] for row in rows])
        mask = estimates.completion_mask(ids[:, width:], self.end_tokens.to(ids.device))
        attention = torch.cat([attention[:, :width], mask.to(attention.dtype)], dim=1)
        scores = self._score(rows, ids[:, width:], mask, mode)
        learnt = mask & ~scores.isnan()[:, None]
        logps, values, reference = self._evaluate_models(ids, attention, mask.shape[1])
        kl = torch.where(mask, losses.estimate_divergence(logps, reference, self.options.kl_estimator), 0.0)
        rewards = estimates.spread_rewards(scores.nan_to_num(), kl, mask, self._kl_controller.coefficient)
        notes = self._metric_window(mode)
        if self.options.whiten_rewards:
            rewards = estimates.whiten(rewards, mask, notes.sum_moments(rewards, learnt), centered=False)
        advantages, returns = estimates.estimate_advantages(
            rewards, values * mask, mask, self.options.gamma, self.options.lam
        )
        notes.add_explained_variance(values, returns, learnt)
        if self.options.whiten_advantages:
            advantages = estimates.whiten(advantages, learnt, notes.sum_moments(advantages, learnt))
        if self.options.kl_coef:  # without it there is no reference
            strayed, completed = notes.add_divergence(kl, mask)
            if mode == "train":
                notes.add({"kl_coef": self._kl_controller.coefficient})
                self._kl_controller.update(strayed, completed)
        advantages, returns = torch.where(learnt, advantages, 0.0), torch.where(learnt, returns, 0.0)
        return RolloutBatch(ids, attention, learnt, logps, values * mask, advantages, returns)

    def _generate(self, prompts: Sequence[Turns]) -> tuple[Tensor, Tensor, int]:
        """Sample completions (see `trainers.models.generation.generate_completions`)."""
        tokenizer: Any = self.processing_class
        longest = self.options.max_prompt_length or 0
        ids = [tokenize_prompt(tokenizer, prompt)[-longest:] for prompt in prompts]
        settings = _sampling_settings(self.options, tokenizer.pad_token_id, self.end_tokens.tolist())
        with self.during("generating"), self.accelerator.autocast():
            return generate_completions(self._policy, ids, settings)

    def _evaluate_models(self, ids: Tensor, attention: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities and values by the policy, and log-probabilities by the reference. They are computed
        in micro-batches, because a rollout may be far larger than a model can take at once.
        """
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        size = self.options.per_device_train_batch_size
        for part, attended in zip(torch.split(ids, size), torch.split(attention, size), strict=True):
            with self.accelerator.autocast():
                asked = (part, attended, width, self.options.temperature)
                logits, states = policy.logits_and_states(self._policy, *asked, with_states=True)
                values = policy.compute_values(self._policy, cast(Tensor, states))
                logps = losses.log_probabilities(logits, part[:, -width:])
                reference = logps
                if self.options.kl_coef:
                    reference = policy.reference_log_probabilities(self._policy, self._reference, *asked)
                found.append((logps, values, reference))
        logps, values, reference = (torch.cat(each) for each in zip(*found, strict=True))
        return logps, values, reference

    def _score(self, rows: Sequence[Row], ids: Tensor, mask: Tensor, mode: str) -> Tensor:
        """Return the score of each completion (rows,); NaN where no reward had an opinion on it."""
        kept = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
        completions = decode_completions(
            self.processing_class, kept, as_messages=not isinstance(rows[0]["prompt"], str)
        )
        parts = self._scorer(rows, completions, kept, self.state)
        ended = (torch.isin(ids, self.end_tokens.to(ids.device)) & mask).any(dim=1)
        scores = torch.where(parts.isnan().all(dim=1), torch.nan, (parts * self._weights).nansum(dim=1))
        if self.options.missing_eos_penalty is not None:
            scores = scores - self.options.missing_eos_penalty * ~ended
        self._metric_window(mode).add_scores(self._scorer.names, parts, scores, ended, mask)
        if mode == "train":
            self._newest_rollouts = [
                Rollout(row["prompt"], completion, self._scorer.values_by_name(values))
                for row, completion, values in zip(rows, completions, parts.tolist(), strict=True)
            ]
        return scores

    # Learning

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss over the minibatch's tokens of all processes. DDP averages over processes and the
        Trainer over micro-batches, so both numbers are multiplied in.
        """
        batch, tokens = inputs
        mean_of_means = self.accelerator.num_processes * self.args.gradient_accumulation_steps
        return self._summed_loss(model, batch, "train") / tokens.clamp(min=1) * mean_of_means

    def _summed_loss(self, model: Any, batch: RolloutBatch, mode: str) -> Tensor:
        """Return the loss summed over the tokens of a batch."""
        options, mask = self.options, batch.mask
        logits, states = policy.logits_and_states(
            model, batch.ids, batch.attention, batch.completion, options.temperature, with_states=True
        )
        taken = losses.log_probabilities(logits, batch.ids[:, -batch.completion :])
        logps = torch.where(mask, taken, batch.logps)  # what follows the end may diverge without bound
        values = policy.compute_values(self._policy, cast(Tensor, states))
        pushed, policy_clipped = losses.clipped_policy_loss(logps, batch.logps, batch.advantages, options.cliprange)
        fitted, value_clipped = losses.clipped_value_loss(values, batch.values, batch.returns, options.cliprange_value)
        with torch.set_grad_enabled(torch.is_grad_enabled() and options.entropy_coef != 0):
            entropy = losses.entropy(logits)
        notes = {
            "policy_loss": pushed,
            "value_loss": fitted,
            "entropy": entropy,
            "clip_ratio/policy": policy_clipped,
            "clip_ratio/value": value_clipped,
            "approx_kl": 0.5 * (logps - batch.logps) ** 2,
        }
        self._metric_window(mode).add_token_means(notes, mask)
        return ((pushed + options.vf_coef * fitted - options.entropy_coef * entropy) * mask).sum()

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Roll out held-out prompts and return the loss before any step."""
        batch = self._roll_out(inputs, "eval")
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self._summed_loss(self._policy, batch, "eval") / batch.mask.sum().clamp(min=1)
        return loss.detach(), None, None

    # What is logged

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self._policy.training
        for name, value in self._metric_window("train" if training else "eval").take_means().items():
            logs[name if training else f"eval_{name}"] = value
        super().log(logs, *args, **kwargs)

    def _metric_window(self, mode: str) -> MetricWindow:
        return MetricWindow(self.accelerator, self._metrics[mode])

    def newest_rollouts(self) -> Sequence[Rollout]:
        return self._newest_rollouts

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model as any other of its kind, so that it loads as one, and the value head beside it."""
        folder = output_dir or str(self.args.output_dir)
        super()._save(folder, policy.remove_head(self._policy.state_dict() if state_dict is None else state_dict))
        policy.save_head(self._policy, Path(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        policy.load_head(self._policy, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Skip the optimizer of a model without a value head: it lacks a part of the weights that are trained here."""
        if checkpoint is None or policy.has_head(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)

    @classmethod
    def describe_missing_state(cls, checkpoint: SavedCheckpoint) -> str:
        if policy.has_head(checkpoint.folder):
            return super().describe_missing_state(checkpoint)
        return "it has no value head, which begins anew, and so does the optimizer"

    def collect_extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"position": self._position, "kl_coef": self._kl_controller.coefficient}
        if self._buffer and self._position % (self.options.num_ppo_epochs * self.options.micro_batches):
            state |= self._buffer.to_state()
        return state

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        self._position = state.get("position", self.state.global_step * self.args.gradient_accumulation_steps)
        self._kl_controller.coefficient = state.get("kl_coef", self._kl_controller.coefficient)
        if "batch" in state:
            self._buffer = RolloutBuffer(RolloutBatch(**state["batch"]), state["orders"], state["counts"])


def _prepare_models(model: Any, args: PPOConfig, peft_config: Any, ref_model: Any) -> tuple[Any, Any]:
    """Return the policy with its value head, and the reference. The reference is None where it is the policy without
    its adapter, or where none is needed.
    """
    how: Any = args.model_init_kwargs or {}
    loaded = AutoModelForCausalLM.from_pretrained(model, **how) if isinstance(model, str) else model
    reference = ref_model
    if peft_config is not None:
        loaded = get_peft_model(loaded, peft_config)
    elif isinstance(loaded, PeftModel):
        policy.add_reference_adapter(loaded)
    elif reference is None and isinstance(loaded, PreTrainedModel) and args.kl_coef:
        reference = AutoModelForCausalLM.from_pretrained(str(loaded.name_or_path), **how)
    if args.disable_dropout:
        policy.disable_dropout(loaded)
    policy.add_value_head(loaded)
    return loaded, reference if args.kl_coef else None


def _require_prompts(options: PPOConfig, count: int) -> None:
    """Raise ValueError when there are fewer prompts than one rollout takes."""
    needed = options.rollout_rows * options.world_size
    if count < needed:
        raise ValueError(
            f"a rollout takes {needed} prompts (per_device_train_batch_size x gradient_accumulation_steps x "
            f"num_mini_batches x processes), and there are {count}"
        )


def _sampling_settings(options: PPOConfig, pad_token: int, end_tokens: list[int]) -> GenerationConfig:
    """Return how completions are sampled."""
    return GenerationConfig(
        do_sample=True,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_new_tokens=options.max_completion_length,
        pad_token_id=pad_token,
        eos_token_id=end_tokens,
        use_cache=True,
    )


def _keep_rows(rows: list[Row]) -> Any:
    """Collate rows as they are."""
    return rows
