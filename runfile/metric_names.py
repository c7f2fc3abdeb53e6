"""The names of training metrics, shared by what reports them (the trainers) and by what imports them (relayctl).

The Hugging Face Trainer logs under its own names. Relay reports some of them under clearer ones, so that a run that
was trained by Relay and a run that was imported have the same curves.
"""

import math
import re
from collections.abc import Mapping

#: The Hugging Face Trainer's name of a metric that is logged during training, and Relay's.
TRAINING: Mapping[str, str] = {"loss": "train_loss", "train_tokens_per_second": "tokens_per_second"}
#: The Hugging Face Trainer's name of a metric that is logged once, when the training ends, and Relay's.
SUMMARY: Mapping[str, str] = {
    "train_loss": "train_loss_mean",
    "total_flos": "total_flos",
    "train_runtime": "train_runtime",
}
#: What the Hugging Face Trainer logs with every evaluation and Relay does not report.
EVALUATION_SPEEDS = ("eval_runtime", "eval_steps_per_second")
#: The share of completions on which no reward has an opinion, and which PPO therefore does not learn from.
UNSCORED = "completions/unscored_ratio"
#: The metrics that a user looks at first, in this order.
FIRST = ("train_loss", "eval_loss", "reward", "eval_reward")

_EVALUATION = re.compile(r"eval_(?!.*(per_second|runtime|num_tokens))[\w/]+")


def is_evaluation_result(name: str) -> bool:
    """Return True for what an evaluation measures of the model, such as `eval_loss`, and not of the machine."""
    return _EVALUATION.fullmatch(name) is not None


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
