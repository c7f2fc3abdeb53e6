"""The script that a user would write without Relay: the baseline of Relay's SFT.

    python -m benchmarks.bare_sft RUN_FILE FOLDER

It takes model, rows, adapter and options from the same run file, saves as often, and leaves its model in FOLDER. Beyond
that it only records the time of each log, in FOLDER/logged.json. It trains on the GPU where there is one.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def train(run: dict[str, Any], folder: Path) -> None:
    """Trains in this process; local paths are relative to the current folder."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    logged: list[tuple[int, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                logged.append((state.global_step, time.time()))

    rows = [json.loads(line) for line in Path(run["data"]["train"]).read_text().splitlines()]
    cuda = torch.cuda.is_available()
    own = {
        "output_dir": str(folder / "checkpoints"),
        "use_cpu": not cuda,
        "bf16": False,
        "save_steps": int(run["checkpoint"]["every"].split()[0]),
        "seed": 42,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "model_init_kwargs": run.get("model_init"),
    }
    trainer = SFTTrainer(
        model=run["model"]["name_or_path"],
        args=SFTConfig(**own | run["options"]),
        train_dataset=Dataset.from_list(rows),
        callbacks=[Clock()],
        peft_config=LoraConfig(task_type="CAUSAL_LM", **run["lora"]) if run.get("lora") else None,
    )
    trainer.train()
    trainer.save_model(str(folder))
    (folder / "logged.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
