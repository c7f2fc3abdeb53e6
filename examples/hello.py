"""Counts, as a run: the contract between Relay and a program in sixty lines of standard library."""

import argparse
import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Run:
    """The folders that Relay names in the environment; without Relay, `hello-run/` here."""

    def __init__(self) -> None:
        home = Path("hello-run")
        self.events = Path(os.environ.get("RELAY_EVENTS", home / "events.jsonl"))
        self.staging = Path(os.environ.get("RELAY_CKPT_STAGING_ROOT", home / "ckpt"))
        self.output = Path(os.environ.get("RELAY_OUTPUT_DIR", home / "output"))
        self.resume_from = os.environ.get("RELAY_RESUME_FROM")
        for folder in (self.events.parent, self.staging, self.output):
            folder.mkdir(parents=True, exist_ok=True)

    def event(self, **fields: Any) -> None:
        """Append one line in one write."""
        with self.events.open("a") as file:
            file.write(json.dumps(fields) + "\n")

    def save(self, step: int, total: int) -> None:
        """Write a checkpoint under another name, rename it, and only then report it, so that it appears whole."""
        name = f"step_{step:08d}"
        draft = self.staging / f".tmp-{name}"
        draft.mkdir(exist_ok=True)
        (draft / "state.json").write_text(json.dumps({"step": step, "total": total}))
        draft.rename(self.staging / name)
        self.event(type="checkpoint", step=step, path=name)

    def restore(self) -> tuple[int, int]:
        """Return the step and the sum to resume from."""
        if not self.resume_from:
            return 0, 0
        state = json.loads((Path(self.resume_from) / "state.json").read_text())
        return state["step"], state["total"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.5, help="one step takes")
    args = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    run = Run()
    step, total = run.restore()
    while step < args.steps:
        stopping = stop.wait(args.seconds)
        step, total = step + 1, total + step + 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        run.event(type="metric", step=step, time=now, values={"total": total})
        run.event(type="progress", step=step, total=args.steps)
        if stopping or step % 5 == 0 or step == args.steps:
            run.save(step, total)
        if stopping and step < args.steps:
            return 0  # stopped on request, and saved
    (run.output / "total.json").write_text(json.dumps({"total": total}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
