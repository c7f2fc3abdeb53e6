"""One rollout: completions with all that is known of them, and how the run's rewards score them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from trl.data_utils import apply_chat_template, is_conversational

Reward = Callable[..., list[float | None]] | nn.Module


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rows of a rollout: prompts padded on the left, completions on the right. Each tensor is (rows, tokens)."""

    ids: Tensor  #: prompt and completion
    attention: Tensor  #: 0 for padding, else 1
    mask: Tensor  #: True for tokens to learn from; this and what follows has the completion's columns only
    logps: Tensor  #: log-probabilities with which the tokens were sampled
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def completion(self) -> int:
        """The number of columns of the completions."""
        return int(self.mask.shape[1])

    def select_rows(self, indices: Tensor) -> "RolloutBatch":
        """Return the rows with these indices."""
        return RolloutBatch(*(getattr(self, each.name)[indices] for each in fields(self)))

    def to_state(self) -> dict[str, Tensor]:
        """Return the tensors as a checkpoint stores them. `RolloutBatch(**state)` is the batch again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class RolloutBuffer:
    """A rollout and the order in which its epochs go through it."""

    batch: RolloutBatch
    orders: Tensor  #: (epochs, rows): the order of the rows in each epoch
    counts: Tensor  #: (epochs, minibatches): tokens of each minibatch, summed over all processes

    def to_state(self) -> dict[str, Any]:
        """Return the tensors as a checkpoint stores them."""
        return {"batch": self.batch.to_state(), "orders": self.orders, "counts": self.counts}

    def micro_batch(self, position: int, rows: int, accumulation: int) -> tuple[RolloutBatch, Tensor]:
        """Return the micro-batch at a position, and the number of tokens of its minibatch."""
        per_epoch = self.orders.shape[1] // rows
        epoch, at = divmod(position, per_epoch)
        return self.batch.select_rows(self.orders[epoch, at * rows : (at + 1) * rows]), self.counts[
            epoch, at // accumulation
        ]


class RewardScorer:
    """Scores completions with every reward: functions, called as TRL calls them, and sequence classifiers with their
    tokenizers.
    """

    def __init__(self, rewards: Sequence[Reward], tokenizers: Sequence[Any], device: torch.device) -> None:
        self._device = device
        self._tokenizers = list(tokenizers) or [None] * len(rewards)
        self._rewards = [
            each.to(device).eval().requires_grad_(False) if isinstance(each, nn.Module) else each for each in rewards
        ]
        for reward, tokenizer in zip(rewards, self._tokenizers, strict=True):
            if isinstance(reward, nn.Module):
                _share_pad_token(reward, tokenizer)
        self.names = [_reward_name(each) for each in rewards]

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], completions: list[Any], ids: list[list[int]], state: Any
    ) -> Tensor:
        """Return the rewards, (rows, rewards), with NaN for no opinion. `ids` are the completions' tokens."""
        prompts = [row["prompt"] for row in rows]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
        given = {"prompts": prompts, "completions": completions, "completion_ids": ids, "trainer_state": state}
        found = [
            self._score_by_model(reward, tokenizer, prompts, completions)
            if isinstance(reward, nn.Module)
            else self._score_by_function(reward, {**given, **columns})
            for reward, tokenizer in zip(self._rewards, self._tokenizers, strict=True)
        ]
        return torch.stack(found, dim=1)

    def values_by_name(self, values: Sequence[float]) -> dict[str, float | None]:
        """Return one row's rewards by name, with None for no opinion."""
        return {name: None if value != value else value for name, value in zip(self.names, values, strict=True)}

    def _score_by_function(self, reward: Callable[..., list[float | None]], given: Mapping[str, Any]) -> Tensor:
        values = [float("nan") if value is None else value for value in reward(**given)]
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _score_by_model(self, scorer: nn.Module, tokenizer: Any, prompts: list[Any], completions: list[Any]) -> Tensor:
        if is_conversational({"prompt": prompts[0]}):
            pairs = [{"messages": [*prompt, *said]} for prompt, said in zip(prompts, completions, strict=True)]
            texts = [apply_chat_template(each, tokenizer)["text"] for each in pairs]
        else:
            texts = [prompt + said for prompt, said in zip(prompts, completions, strict=True)]
        asked = tokenizer(
            text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        ).to(self._device)
        return cast(Tensor, scorer(**asked).logits[:, 0].float())


def _share_pad_token(scorer: Any, tokenizer: Any) -> None:
    """Give the classifier its tokenizer's padding token, by which it finds the last token of a text."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    scorer.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _reward_name(reward: Any) -> str:
    """Return the name of the reward's curve."""
    if isinstance(reward, nn.Module):
        return str(cast(Any, reward).config._name_or_path).rpartition("/")[2]
    return str(reward.__name__)
