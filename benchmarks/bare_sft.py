"""The script that a user would write without Relay: the baseline of Relay's SFT.

    python -m benchmarks.bare_sft RUN_FILE FOLDER

It takes model, rows and options from the same run file, saves as often, and leaves its model in FOLDER. Beyond that it
only records the time of each log, in FOLDER/logged.json.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def train(run: dict[str, Any], folder: Path) -> None:
    """Trains in this process; local paths are relative to the current folder."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    logged: list[tuple[int, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                logged.append((state.global_step, time.time()))

    rows = [json.loads(line) for line in Path(run["data"]["train"]).read_text().splitlines()]
    args = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        use_cpu=True,
        bf16=False,
        save_steps=int(run["checkpoint"]["every"].split()[0]),
        seed=42,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **run["options"],
    )
    trainer = SFTTrainer(
        model=run["model"]["name_or_path"], args=args, train_dataset=Dataset.from_list(rows), callbacks=[Clock()]
    )
    trainer.train()
    trainer.save_model(str(folder))
    (folder / "logged.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
