"""`python -m tests.relayctl.plain_trainer FOLDER INTO`: four steps of a plain Hugging Face Trainer, saved every two."""

import json
import sys
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)


def train(folder: Path, into: Path) -> None:
    """Of `model` and `train.jsonl` in the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    args = TrainingArguments(
        output_dir=str(into), max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=4,
        learning_rate=1e-3, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=args,
        train_dataset=[tokenizer(row) for row in rows],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    ).train()


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
