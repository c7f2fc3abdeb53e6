"""Samples of what the model says during training: completions of the same few prompts at every evaluation, and for RL
the newest rollouts with their rewards.

Sampling does not change the training: completions are the likeliest ones, so no random number is drawn for them.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runfile import SamplesSection
from trainers.data.loading import Rows
from trainers.events import EventLog
from trainers.models.generation import Turns, find_end_tokens, generate_completions, tokenize_prompt
from trainers.resumable import ResumableTrainer
from trainers.rollout import Rollout

_PROMPT_TOKENS = 32  #: the number of tokens of a plain text that the model continues


class SampleCallback(TrainerCallback):
    """Writes samples to the event file. Only the main process has one."""

    def __init__(
        self,
        trainer: ResumableTrainer,
        samples: SamplesSection | None,
        rows: Rows,
        events: EventLog,
        *,
        evaluates: bool,
    ) -> None:
        """Take the prompts from `rows`. Without evaluations, completions are also written every `samples.every` steps.
        A run without `samples` still gets its rollouts, which exist anyway.
        """
        self._trainer, self._events, self._evaluates = trainer, events, evaluates
        self._samples = samples or SamplesSection()
        count = min(samples.prompts, len(rows)) if samples else 0
        prompts = [extract_prompt(rows.kind, rows.rows[index]) for index in range(count)]
        self._prompts = [_first_tokens_as_text(trainer, each) for each in prompts] if rows.kind == "text" else prompts

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self._samples.every == 0:
            self._log_rollouts(state.global_step)
            if not self._evaluates:
                self._log_completions(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._log_completions(state.global_step)

    def _log_rollouts(self, step: int) -> None:
        for rollout in pick_evenly(self._trainer.newest_rollouts(), self._samples.prompts):
            rewards = {name: value for name, value in rollout.rewards.items() if value is not None}
            self._events.log_sample(
                step, "rollout", format_turns(rollout.prompt), format_turns(rollout.completion), rewards
            )

    def _log_completions(self, step: int) -> None:
        if not self._prompts or self._is_sharded():
            return
        answers = complete_prompts(self._trainer, self._prompts, self._samples.max_new_tokens)
        for prompt, answer in zip(self._prompts, answers, strict=True):
            self._events.log_sample(step, "prompt", format_turns(prompt), answer)

    def _is_sharded(self) -> bool:
        """Return True when one process alone cannot run the model."""
        return self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled


def extract_prompt(kind: str, row: Mapping[str, Any]) -> Turns:
    """Return what a row of a kind (see `trainers.data.row_formats`) asks the model: everything before what is to be
    learnt.
    """
    match kind:
        case "text":
            return str(row["text"])
        case "chat":
            last = max((at for at, turn in enumerate(row["messages"]) if turn["role"] == "assistant"), default=None)
            return list(row["messages"][:last])
        case "preference" if "prompt" not in row:
            chosen, rejected = row["chosen"], row["rejected"]
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
            return chosen[:same] if isinstance(chosen, str) else list(chosen[:same])
    prompt: Turns = row["prompt"]
    return prompt


def _first_tokens_as_text(trainer: ResumableTrainer, text: Turns) -> str:
    """Return the start of a plain text, for the model to complete."""
    tokenizer: Any = trainer.processing_class
    return str(tokenizer.decode(tokenizer(text)["input_ids"][:_PROMPT_TOKENS], skip_special_tokens=True))


def format_turns(turns: Turns) -> str:
    """Return messages as lines `role: content`, and a single message of the assistant without its role."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1 and turns[0].get("role") == "assistant":
        return str(turns[0].get("content") or "")
    return "\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in turns)


def pick_evenly(found: Sequence[Rollout], most: int) -> list[Rollout]:
    """Return at most `most` rollouts, evenly spread, because neighbours answer the same prompt."""
    return [found[index * len(found) // most] for index in range(most)] if len(found) > most else list(found)


def complete_prompts(trainer: ResumableTrainer, prompts: Sequence[Turns], max_new_tokens: int) -> list[str]:
    """Return the likeliest completion of each prompt by the current model."""
    model: Any = trainer.model
    tokenizer: Any = trainer.processing_class
    room = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    new, ends = min(max_new_tokens, max(1, room // 2)), find_end_tokens(model, tokenizer)
    filling = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    how = GenerationConfig(
        do_sample=False, max_new_tokens=new, pad_token_id=filling, eos_token_id=ends or None, use_cache=True
    )
    asked = [tokenize_prompt(tokenizer, prompt)[-(room - new) :] for prompt in prompts]
    with trainer.during("generating"), trainer.accelerator.autocast():
        made, _, begin = generate_completions(model, asked, how)
    return [str(tokenizer.decode(each, skip_special_tokens=True)) for each in made[:, begin:]]
