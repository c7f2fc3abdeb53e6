"""Rows of which `max_length` leaves nothing to learn: they are left out and counted, and a run of nothing else is
refused.

Several losses divide by the number of tokens to learn, so one such row among good ones can make every weight NaN. Some
libraries drop such rows by themselves, without a word; what they have dropped is counted too.
"""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from datasets import Dataset

from trainers.errors import ConfigError

_MASKED = -100  #: the label of a token that is not learnt

RowFilter = Callable[[Mapping[str, Any]], bool]  #: True for a prepared row of which something is left to learn


def has_labels(row: Mapping[str, Any]) -> bool:
    """Return True when a token of the row is learnt. The first token never is: nothing comes before it."""
    return any(label != _MASKED for label in row["labels"][1:])


def has_labels_in_both(row: Mapping[str, Any]) -> bool:
    """Return True when a token of each of a pair's answers is learnt."""
    return all(has_labels({"labels": row[f"{answer}_labels"]}) for answer in ("chosen", "rejected"))


def leave_out_rows(trainer: Any, train: Sized, held_out: Sized | None) -> Sequence[str]:
    """Take the rows of which nothing is left to learn out of a trainer's data sets, and return what to warn about.
    `train` and `held_out` are the rows that the trainer was given.

    Raises ConfigError when no row is left.
    """
    warnings = []
    for name, attribute, given in (("data.train", "train_dataset", train), ("data.eval", "eval_dataset", held_out)):
        prepared = getattr(trainer, attribute)
        if given is None or prepared is None:
            continue
        unit, before = "rows", len(given)
        if isinstance(prepared, Sized) and _is_packed(trainer.args, attribute):
            unit, before = "packed sequences", len(prepared)
        kept = _filter_rows(prepared, trainer.build_row_filter(), trainer.args)
        setattr(trainer, attribute, kept)
        if not isinstance(kept, Sized):
            continue  # a stream is filtered while it is read, and does not say how many rows it has
        if not len(kept):
            raise ConfigError(
                f"{name}: no row has anything left to learn within options.max_length {trainer.args.max_length}; "
                "raise it, or shorten the rows"
            )
        if len(kept) < before:
            warnings.append(
                f"{name}: {before - len(kept)} of {before} {unit} are left out, since {trainer.why_rows_are_left_out} "
                f"({trainer.args.max_length}); raise it, or shorten them"
            )
    return warnings


def _is_packed(args: Any, attribute: str) -> bool:
    """Return True when a data set holds sequences that were put together from several rows."""
    packing = getattr(args, "packing", False)
    own = getattr(args, "eval_packing", None) if attribute == "eval_dataset" else None
    return bool(packing if own is None else own)


def _filter_rows(prepared: Any, keep: RowFilter | None, args: Any) -> Any:
    """Return the prepared rows that `keep` accepts; the same object where it accepts all."""
    if keep is None:
        return prepared
    if not isinstance(prepared, Dataset):
        return prepared.filter(keep)
    kept = prepared.filter(keep, num_proc=getattr(args, "dataset_num_proc", None), desc="Leaving out rows")
    return kept if len(kept) < len(prepared) else prepared
