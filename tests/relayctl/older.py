"""Folders as trainings without Relay leave them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Of an `events.jsonl`: events, or lines as they are.
Lines = Iterable[dict[str, Any] | str]


def run_folder(root: Path, steps: Iterable[int], events: Lines = (), *, status: str = "COMPLETED") -> Path:
    """`runs/<run_id>` of the commander's workers; the step is all that is saved, as `stepper.py` reads it."""
    for step in steps:
        folder = root / "ckpt" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "step").write_text(str(step))
        (root / "ckpt" / "latest").unlink(missing_ok=True)
        (root / "ckpt" / "latest").symlink_to(folder.name)
        (root / "state.json").write_text(json.dumps({"status": status, "latest_ckpt": folder.name}))
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    (root / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return root


def point(step: int, loss: float) -> dict[str, Any]:
    return {"type": "metric", "step": step, "time": "2026-01-02T03:04:05Z", "values": {"train_loss": loss}}


def hf_checkpoint(root: Path, step: int, history: Iterable[dict[str, Any]] | None = None, **more: Any) -> Path:
    """`checkpoint-<step>` of the Hugging Face Trainer, with weights that only look like some."""
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(f"{name} of {step}".encode())
    logs = [{"step": n, "loss": 1 / n, "epoch": n / 10} for n in range(1, step + 1)] if history is None else history
    state = {"global_step": step, "max_steps": 100, "log_history": list(logs), **more}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder
