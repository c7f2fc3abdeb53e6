"""A trainer for tests: counts steps as fast as it is let, under the contract that every program can follow."""

import json
import os
import signal
import sys
from pathlib import Path

stop: list[int] = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))

events = Path(os.environ["RELAY_EVENTS"]).open("a", buffering=1)  # noqa: SIM115
staging, output = Path(os.environ["RELAY_CKPT_STAGING_ROOT"]), Path(os.environ["RELAY_OUTPUT_DIR"])
resumed = os.environ.get("RELAY_RESUME_FROM")
step = int(Path(resumed, "step").read_text()) if resumed else 0
total = int(os.environ["STEPS"])
print("begins at", step, flush=True)


def tell(**line: object) -> None:
    events.write(json.dumps(line) + "\n")


def save() -> None:
    folder = staging / f".tmp-{step}"
    folder.mkdir()
    (folder / "step").write_text(str(step).zfill(int(os.environ.get("DIGITS", "1"))))
    metrics = {}
    if os.environ.get("ADAPTER"):
        write_adapter(folder)
        metrics = {"eval_loss": 1 / step}
    folder.rename(staging / f"step_{step:08d}")
    tell(type="checkpoint", step=step, path=f"step_{step:08d}", metrics=metrics)


def write_adapter(folder: Path) -> None:
    """Files by the names that libraries give them, and a trainer's state."""
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "adapter_model.safetensors").write_text(f"weights of step {step}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_text("state")


while step < total and not stop:
    step += 1
    tell(type="metric", step=step, values={"train_loss": 1 / step})
    tell(type="progress", step=step, total=total)
    if step % 5 == 0:
        tell(
            type="sample", step=step, kind="rollout", prompt="2 +\n2", completion=f"{step}\x1b", rewards={"exact": 0.25}
        )
        save()
    if step == int(os.environ.get("HOLD_AT", "0")):
        signal.pause()  # until it is asked to stop
if stop:
    save()
elif os.environ.get("FAIL"):
    print("this is why", file=sys.stderr)
    sys.exit(3)
else:
    (output / "result.txt").write_text("done")
    if os.environ.get("ADAPTER"):
        write_adapter(output)
        (output / "relay.json").write_text('{"model": "org/base", "versions": {"peft": "1.0"}}')
