"""Completions of one rollout, with all that is known of them when they have been judged."""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of a rollout: prompts filled up on the left, completions on the right. (rows, tokens) each."""

    ids: Tensor  #: prompt and completion
    attention: Tensor  #: 1 for what is no filling
    mask: Tensor  #: True for the tokens of the completion; the columns are the completion's, as of all that follow
    logps: Tensor  #: log-probabilities at which they were drawn
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def completion(self) -> int:
        """Columns of the completions."""
        return int(self.mask.shape[1])

    def rows(self, indices: Tensor) -> "Batch":
        return Batch(*(getattr(self, each.name)[indices] for each in fields(self)))

    def state(self) -> dict[str, Tensor]:
        """As a checkpoint keeps it; `Batch(**state)` is the batch again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Buffer:
    """A rollout on the way through its epochs."""

    batch: Batch
    orders: Tensor  #: (epochs, rows): the order in which each epoch takes the rows
    counts: Tensor  #: (epochs, minibatches): tokens of each minibatch, over all processes

    def share(self, position: int, rows: int, accumulation: int) -> tuple[Batch, Tensor]:
        """The micro-batch at a position, and how many tokens its minibatch has."""
        per_epoch = self.orders.shape[1] // rows
        epoch, at = divmod(position, per_epoch)
        return self.batch.rows(self.orders[epoch, at * rows : (at + 1) * rows]), self.counts[epoch, at // accumulation]
