"""`python -m trainers data FILE… --method sft [--model M]` reports on rows before anything trains on them.

It lists the errors row by row and counts rows that are empty or repeated. With a model's tokenizer it gives the lengths
of the rows, how much `max_length` cuts off, and some rows exactly as the model will see them. The method's own library
trainer tokenizes the rows, on a stand-in for the model, so the report cannot differ from the training.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runfile import DataSection, ModelSection, RunFileErrors, parse_run_file
from trainers import methods
from trainers.data import loading
from trainers.data.disk_rows import gather_rows
from trainers.data.row_formats import Row
from trainers.errors import ConfigError, HostError
from trainers.methods.method import Method
from trainers.models import hub

LISTED_ERRORS, RENDERED_ROWS, TOKENIZED_ROWS = 5, 3, 2000
_NO_LIMIT = 1 << 20  #: a `max_length` in tokens that cuts no row
_BARS, _WIDTH = 10, 40
_LEARNT_COLUMNS = ("completion", "chosen", "text")  #: columns with text that is learnt


@dataclass(frozen=True, slots=True)
class ExaminedRows:
    """Rows that were read, and the errors among them."""

    kind: str
    rows: Sequence[Row]
    errors: Sequence[str] = ()  #: the first few, each with file and line
    error_count: int = 0
    stopped_by: str = ""  #: the error that ended reading before the last row


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence that the model is given for a row: its tokens, and which of them are learnt."""

    ids: list[int]
    learnt: list[bool]


@dataclass(frozen=True, slots=True)
class TokenizedRows:
    """Rows as tokens."""

    tokenizer: Any
    rows: Sequence[Sequence[TokenSequence]]
    limit: int | None  #: the `max_length` in force
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def lengths(self) -> list[int]:
        """The length of each row's longest sequence, sorted."""
        return sorted(max((len(each.ids) for each in row), default=0) for row in self.rows)


def examine_rows(section: DataSection, kinds: Sequence[str], seed: int, base: Path, scratch: Path) -> ExaminedRows:
    """Read all training rows, skipping those with errors. Many rows are kept in `scratch`."""
    reader = loading.RowReader(section, seed, kinds, base, {})
    bad: list[str] = []
    count, ended = 0, ""

    def good() -> Iterator[Row]:
        nonlocal count, ended
        for source in section.train:
            try:
                for found in reader.check_rows(source):
                    if isinstance(found, ConfigError):
                        count += 1
                        bad.extend([str(found)] if len(bad) < LISTED_ERRORS else [])
                    else:
                        yield found
            except ConfigError as error:
                ended = str(error)

    rows = gather_rows(good(), scratch / "rows", dict)
    return ExaminedRows(reader.kind, rows, bad, count, ended)


def find_oddities(rows: Sequence[Row], *, repeated: bool = False) -> list[str]:
    """Return what may be wrong with valid rows, in a few words each; cheap enough for every start. With `repeated`, the
    weight of a source repeats its rows on purpose.
    """
    found = []
    if empty := sum(_teaches_nothing(row) for row in rows):
        found.append(f"{empty} of {len(rows)} rows teach nothing: the text to learn is empty")
    if not repeated and (twice := len(rows) - len(np.unique(np.fromiter(map(_hash_row, rows), np.uint64, len(rows))))):
        found.append(f"{twice} of {len(rows)} rows occur more than once")
    return found


def _hash_row(row: Row) -> int:
    """Return a hash of 64 bits of the row."""
    said = json.dumps(row, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest())


def _teaches_nothing(row: Row) -> bool:
    """Return True when the part of a row that is learnt is empty."""
    if "messages" in row:
        said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        return not any(text.strip() for text in said)
    learnt = [row[name] for name in _LEARNT_COLUMNS if name in row] or [row.get("prompt", "")]
    return any(not _plain_text(value).strip() for value in learnt)


def _plain_text(value: Any) -> str:
    """Return the text of a value that is text or messages."""
    return value if isinstance(value, str) else "".join(turn["content"] for turn in value)


def tokenize_rows(method: Method, rows: Sequence[Row], folder: Path, options: Mapping[str, Any]) -> TokenizedRows:
    """Tokenize the rows (an even selection of many) by the method's trainer. `folder` holds the tokenizer and the
    config.
    """
    from transformers import AutoTokenizer

    step = max(1, len(rows) // TOKENIZED_ROWS)
    some = [rows[at] for at in range(0, len(rows), step)]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    notes = [*_check_tokenizer(tokenizer, folder, options, rows)]
    if "prompt" in method.row_kinds:
        from trainers.models.generation import tokenize_prompt

        asked = [
            [TokenSequence(ids, [False] * len(ids))]
            for ids in (tokenize_prompt(tokenizer, row["prompt"]) for row in some)
        ]
        return TokenizedRows(tokenizer, asked, options.get("max_prompt_length"), notes)
    with _quiet_libraries(), tempfile.TemporaryDirectory(prefix="relay-data-") as scratch:
        trainer, limit = _build_trainer(method, some, tokenizer, Path(scratch), options)
        made = [list(_split_sequences(trainer.data_collator([row]))) for row in trainer.train_dataset]
    ends = tokenizer.eos_token_id
    learns = any(any(each.learnt) for row in made for each in row)  # a reward model learns to score, and no token
    if learns and not any(ends in _learnt_ids(each) for row in made for each in row):
        notes.append(f"no row teaches where to stop: {tokenizer.eos_token} is never learnt")
    return TokenizedRows(tokenizer, made, limit, notes)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Suppress what the libraries report about the stand-in."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(before)


def _learnt_ids(sequence: TokenSequence) -> set[int]:
    """Return the tokens of a sequence that are learnt."""
    return {token for token, learnt in zip(sequence.ids, sequence.learnt, strict=True) if learnt}


def _build_trainer(
    method: Method, rows: Sequence[Row], tokenizer: Any, scratch: Path, options: Mapping[str, Any]
) -> tuple[Any, int | None]:
    """Return the library's trainer, on a model of the same vocabulary with almost no weights, and the `max_length` in
    force.
    """
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stand_in = LlamaForCausalLM(_stand_in_config(tokenizer))
    stand_in.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    made: Any = method.trainer_class
    config: Any = method.config_class
    asked = {name: value for name, value in options.items() if name in ("assistant_only_loss", "completion_only_loss")}
    own = {"output_dir": str(scratch), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    whole = {"max_length": _NO_LIMIT, "dataloader_pin_memory": False, "model_init_kwargs": {"dtype": "float32"}}
    trainer = made(
        model=str(scratch),
        args=config(**asked, **own, **whole, **({"packing": False} if hasattr(config, "packing") else {})),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        **({"teacher_model": stand_in} if method.uses_teacher else {}),
    )
    return trainer, options.get("max_length", config(**own).max_length)


def _stand_in_config(tokenizer: Any) -> Any:
    """Return the configuration of the smallest model with the tokenizer's vocabulary."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _split_sequences(batch: Mapping[str, Any]) -> Iterator[TokenSequence]:
    """Yield the sequences that a trainer's collator made of one row, without those of another row (KTO's `KL_`)."""
    for name in batch:
        prefix = name.removesuffix("input_ids")
        if prefix == name or prefix in ("prompt_", "KL_"):
            continue
        ids, there = batch[name], batch[f"{prefix}attention_mask"].bool()
        labels, completion = batch.get(f"{prefix}labels"), batch.get(f"{prefix}completion_mask")
        if labels is not None:
            learnt = labels != -100
        else:
            learnt = completion.bool() if completion is not None else there & False
        for row, kept, taught in zip(ids, there, learnt, strict=True):
            yield TokenSequence(row[kept].tolist(), taught[kept].tolist())


def _check_tokenizer(tokenizer: Any, folder: Path, options: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """Yield what about a tokenizer may spoil a training."""
    template = tokenizer.chat_template or ""
    chats = bool(rows) and any(isinstance(value, list) for value in rows[0].values())
    if chats and not template:
        yield "rows are dialogues, but the tokenizer has no chat template"
    if options.get("assistant_only_loss") and "generation" not in template:
        yield "assistant_only_loss needs a chat template with {% generation %} around what the assistant says"
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        end = tokenizer.eos_token
        yield f"padding and end are the same token ({end}): a loss that masks padding by its id masks ends too"
    config = folder / "config.json"
    size = json.loads(config.read_text()).get("vocab_size") if config.is_file() else None
    beyond = [token for token, number in tokenizer.get_added_vocab().items() if size is not None and number >= size]
    if beyond:
        yield f"added tokens without an embedding in the model ({size} rows): {', '.join(sorted(beyond)[:5])}"
    if untrained := sorted(_find_untrained_tokens(tokenizer, folder)):
        yield f"added tokens whose embeddings were never trained (all are equal): {', '.join(untrained[:5])}"


def _find_untrained_tokens(tokenizer: Any, folder: Path) -> set[str]:
    """Return the added tokens whose embeddings are zero or equal to those of another added token."""
    from safetensors import SafetensorError, safe_open

    filling = tokenizer.pad_token  # padding is never trained
    added = {token: number for token, number in tokenizer.get_added_vocab().items() if token != filling}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                names = [name for name in list(opened.keys()) if name.endswith(("embed_tokens.weight", "wte.weight"))]
                if not names:
                    continue
                whole = opened.get_slice(names[0])
                there = {token: number for token, number in added.items() if number < whole.get_shape()[0]}
                rows = {token: tuple(whole[number : number + 1][0].tolist()) for token, number in there.items()}
        except (SafetensorError, OSError):
            continue
        values = list(rows.values())
        return {token for token, row in rows.items() if not any(row) or values.count(row) > 1}
    return set()


def format_report(found: ExaminedRows, made: TokenizedRows | None) -> str:
    """Return the report as text."""
    lines = [
        f"{found.kind or 'no kind that this method learns from'}: {len(found.rows):,} rows",
        *_format_errors(found),
    ]
    lines += find_oddities(found.rows)
    if made is not None and made.rows:
        lines += [*made.notes, "", *_format_lengths(made), *_format_truncation(made), "", *_format_rows(made)]
    return "\n".join(lines)


def _format_errors(found: ExaminedRows) -> Iterator[str]:
    """Yield the first errors and their number."""
    if found.error_count:
        yield f"{found.error_count:,} more rows are wrong, and no run can train on a file with wrong rows:"
        yield from (f"  {each}" for each in found.errors)
    if found.stopped_by:
        yield f"reading stopped: {found.stopped_by}"


def _format_lengths(made: TokenizedRows) -> Iterator[str]:
    """Yield percentiles and a histogram of the lengths."""
    lengths = made.lengths
    at = {share: lengths[min(len(lengths) - 1, len(lengths) * share // 100)] for share in (5, 50, 95, 99)}
    of = f" of {len(lengths):,} rows" if len(lengths) >= TOKENIZED_ROWS else ""
    yield f"tokens{of}: " + "  ".join(f"p{share} {value:,}" for share, value in at.items()) + f"  max {lengths[-1]:,}"
    low = lengths[0]
    width = (lengths[-1] - low) // _BARS + 1
    counts = [sum(1 for length in lengths if (length - low) // width == bar) for bar in range(_BARS)]
    for start, count in ((low + bar * width, count) for bar, count in enumerate(counts)):
        if start <= lengths[-1]:
            span = f"{start:,}" if width == 1 else f"{start:,} to {start + width - 1:,}"
            yield f"  {span:>16}  {'█' * -(-count * _WIDTH // max(counts))} {count:,}"


def _format_truncation(made: TokenizedRows) -> Iterator[str]:
    """Yield what `max_length` cuts off."""
    if made.limit is None:
        return
    longer = [length for length in made.lengths if length > made.limit]
    lost = sum(length - made.limit for length in longer) / max(1, sum(made.lengths))
    share = len(longer) / len(made.lengths)
    yield f"max_length {made.limit:,} cuts {share:.1%} of the rows, and with them {lost:.1%} of all tokens"


def _format_rows(made: TokenizedRows) -> Iterator[str]:
    """Yield the first rows as the model sees them."""
    for number, row in enumerate(made.rows[:RENDERED_ROWS], 1):
        legend = ", with «» around what is learnt" if number == 1 and any(any(each.learnt) for each in row) else ""
        yield f"row {number} as the model sees it{legend}:"
        for sequence in row:
            yield "  " + _mark_learnt(made.tokenizer, sequence).replace("\n", "\n  ")


def _mark_learnt(tokenizer: Any, sequence: TokenSequence) -> str:
    """Return a sequence as text, with «» around what is learnt."""
    text, start = "", 0
    for at in range(1, len(sequence.ids) + 1):
        if at == len(sequence.ids) or sequence.learnt[at] != sequence.learnt[start]:
            part = tokenizer.decode(sequence.ids[start:at])
            text += f"«{part}»" if sequence.learnt[start] else part
            start = at
    return text


def main(argv: list[str]) -> int:
    """Run the command line. Return 0 for rows without errors, 1 for rows with errors, 78 when rows cannot be read at
    all.
    """
    arguments = _build_parser().parse_args(argv)
    try:
        method = methods.load_method(arguments.method)
        section = _data_section(arguments)
        with tempfile.TemporaryDirectory(prefix="relay-data-") as scratch:
            found = examine_rows(section, method.row_kinds, 42, Path.cwd(), Path(scratch))
            print(format_report(found, _tokenize(arguments, method, found)))
    except (ConfigError, HostError, RunFileErrors, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 78
    return 1 if found.error_count or found.stopped_by or not found.rows else 0


def _data_section(arguments: argparse.Namespace) -> DataSection:
    """Return the data section of a run file that trains on these files."""
    rewards = {"rewards": [{"call": "os.path:basename"}]} if methods.load_method(arguments.method).uses_rewards else {}
    teacher = {"teacher": {"name_or_path": "a/b"}} if methods.load_method(arguments.method).uses_teacher else {}
    renames = dict(each.split("=", 1) for each in arguments.column)
    rows = {"train": arguments.file, "format": arguments.format, "columns": renames}
    model = {"name_or_path": arguments.model or "a/b"}
    run = parse_run_file(
        {"version": "relay/v1", "method": arguments.method, "model": model, "data": rows, **rewards, **teacher}
    )
    assert run.data is not None
    return run.data


def _tokenize(arguments: argparse.Namespace, method: Method, found: ExaminedRows) -> TokenizedRows | None:
    """Tokenize the rows for the model that the command line names; None without one."""
    if arguments.model is None or not found.rows:
        return None
    folder = hub.fetch_tokenizer(hub.resolve_model(ModelSection(name_or_path=arguments.model), {}))
    options = {} if arguments.max_length is None else {"max_length": arguments.max_length}
    if arguments.assistant_only_loss:
        options["assistant_only_loss"] = True
    return tokenize_rows(method, found.rows, folder, options)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainers data", description="Look at rows before training on them."
    )
    parser.add_argument("file", nargs="+", help="files, globs, folders, hf://owner/dataset")
    parser.add_argument("--method", required=True, help=f"what is to be trained: {', '.join(methods.NAMES)}")
    parser.add_argument("--model", help="a folder or a name on the Hub: count its tokens, show what it will see")
    parser.add_argument("--format", default="auto", help="what the rows are, where looking at them does not tell")
    parser.add_argument("--column", action="append", default=[], metavar="OLD=NEW", help="rename a column")
    parser.add_argument("--max-length", type=int, help="tokens that options.max_length will allow")
    parser.add_argument("--assistant-only-loss", action="store_true", help="as options.assistant_only_loss")
    return parser
