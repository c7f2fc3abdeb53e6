"""`python -m trainers.merge ADAPTER INTO --run-file run.json` merges an adapter into its base model and verifies the
result.

The sums are computed in float32 and stored in the base model's own type. The merged model, read back, must give the
logits of the unmerged one on rows of the run's own data, within the rounding of that type. The adapter is only read.
The last printed line gives the largest difference; if it is too large, the exit code is 1 and nothing is at INTO.
"""

import argparse
import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from runfile import RunFile, parse_run_file
from trainers import methods
from trainers.data import loading
from trainers.errors import ConfigError, HostError
from trainers.models import hub
from trainers.models.loading import load_model

COMPARED_ROWS, COMPARED_TOKENS = 4, 256  #: the rows, and the tokens of each, on which logits are compared
ROUNDING_SLACK = 16  #: rounding errors of the stored type that may add up in a logit


class MergeMismatch(Exception):
    """The merged model differs from the unmerged one. The message gives the difference."""


def merge_adapter(adapter: Path, into: Path, run: RunFile) -> str:
    """Merge, verify and keep the model; return the result of the comparison. Raises MergeMismatch, ConfigError,
    HostError.
    """
    if into.resolve() == adapter.resolve():
        raise ConfigError(f"{into} is the adapter's own folder, which must not be overwritten")
    draft = into.with_name(f".tmp-{into.name}")
    shutil.rmtree(draft, ignore_errors=True)
    base = _fetch_base(adapter, run)
    stored = AutoConfig.from_pretrained(base).dtype or torch.float32
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    inputs = [
        tokenizer(text, return_tensors="pt", truncation=True, max_length=COMPARED_TOKENS)
        for text in read_texts(run, tokenizer)
    ]
    model: Any = PeftModel.from_pretrained(_load_float32(base, run), str(adapter)).eval()
    before = _compute_logits(model, inputs)
    model.merge_and_unload().to(stored).save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    try:
        said = compare_logits(before, _compute_logits(_load_float32(draft, run), inputs), stored)
    except MergeMismatch:
        shutil.rmtree(draft)
        raise
    shutil.rmtree(into, ignore_errors=True)
    draft.rename(into)
    return said


def compare_logits(before: list[torch.Tensor], after: list[torch.Tensor], stored: torch.dtype) -> str:
    """Describe the largest difference of the logits. Raises MergeMismatch when rounding to `stored` does not explain
    it.
    """
    apart = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    scale = max(float(one.abs().max()) for one in before)
    bound = max(torch.finfo(stored).eps * ROUNDING_SLACK, 1e-5) * max(scale, 1.0)
    said = f"largest difference of a logit {apart:.2e} on {len(before)} rows, bound {bound:.2e} ({stored})"
    if not apart <= bound:  # true for NaN as well
        raise MergeMismatch(f"the merged model differs from the unmerged one: {said}")
    return said


def read_texts(run: RunFile, tokenizer: Any) -> list[str]:
    """Return the first few rows of the run's data as the texts that are trained on."""
    if run.data is None:
        raise ConfigError("data: is missing")
    pins = json.loads(os.environ.get("RELAY_PINS") or "{}")
    rows, _ = loading.load_rows(
        run.data,
        seed=run.seed,
        kinds=methods.load_method(run.method).row_kinds,
        base=Path.cwd(),
        pins=pins,
    )
    return [_format_row(row, tokenizer) for _, row in zip(range(COMPARED_ROWS), rows.rows, strict=False)]


def _format_row(row: Mapping[str, Any], tokenizer: Any) -> str:
    """Return the text of one row."""
    parts = [row[name] for name in ("messages", "text", "prompt", "completion", "chosen") if name in row]
    if isinstance(parts[0], list):
        return str(tokenizer.apply_chat_template([message for part in parts for message in part], tokenize=False))
    return "".join(parts)


def _fetch_base(adapter: Path, run: RunFile) -> Path:
    """Return the folder of the base model, at the commit on which the adapter was trained."""
    if run.model is None:
        raise ConfigError("model: is missing")
    revision = json.loads((adapter / "adapter_config.json").read_text()).get("revision")
    return hub.fetch_model(hub.resolve_model(run.model, {"model": revision} if revision else {})).folder


def _load_float32(folder: Path, run: RunFile) -> Any:
    """Load the model in float32 for evaluation."""
    how = {name: value for name, value in run.model_init.items() if name != "dtype"}
    return load_model(folder, methods.load_method(run.method).task, dtype=torch.float32, **how).eval()


def _compute_logits(model: Any, inputs: list[Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(input_ids=each["input_ids"], attention_mask=each["attention_mask"]).logits for each in inputs]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _build_parser().parse_args(argv)
    if arguments.until_stdin_ends:
        threading.Thread(target=_exit_when_stdin_ends, daemon=True).start()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        print(
            merge_adapter(
                arguments.adapter,
                arguments.into,
                parse_run_file(json.loads(arguments.run_file.read_text()), supported=False),
            )
        )
    except (MergeMismatch, ConfigError, HostError, OSError, ValueError) as error:
        print(" ".join(str(error).split()))
        return 1
    return 0


def _exit_when_stdin_ends() -> None:
    """Exit once stdin ends: the agent that asked for the merge is gone."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainers.merge", description=__doc__)
    parser.add_argument("adapter", type=Path, help="a run's result, or a checkpoint")
    parser.add_argument("into", type=Path, help="a folder for the merged model")
    parser.add_argument("--until-stdin-ends", action="store_true", help="end when whoever started it has")
    parser.add_argument("--run-file", type=Path, required=True, help="the resolved run file (JSON)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
