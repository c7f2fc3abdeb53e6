"""A trainer without a model: follows the contract to the letter, at the speed a test gives it.

Standard library only. What it does comes from its environment:

    STUB_STEPS=10        optimizer steps to train
    STUB_SAVE_EVERY=2    steps between checkpoints; 0: none but on a stop
    STUB_GATE=path       a FIFO; each byte in it is leave to make one step. Without it, it runs freely
    STUB_FAIL_AT=3       exits 3 after this step, with a traceback of sorts, in STUB_FAIL_ATTEMPT (1) only
    STUB_DEAF=1          does not hear SIGTERM
    STUB_SILENT=1        writes no event lines at all
    STUB_SIZE=1000       bytes of its "weights"

Its weights are a chain of digests, one link per step, so that two ways to the same step end in the same bytes only
when no step was left out, doubled or begun from anything else.
"""

import hashlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

STEPS = int(os.environ.get("STUB_STEPS", "10"))
SAVE_EVERY = int(os.environ.get("STUB_SAVE_EVERY", "2"))
ATTEMPT = int(os.environ["RELAY_ATTEMPT"])
FAIL_AT = int(os.environ.get("STUB_FAIL_AT", "-1"))
FAILING = int(os.environ.get("STUB_FAIL_ATTEMPT", "1")) == ATTEMPT
STAGING, EVENTS = Path(os.environ["RELAY_CKPT_STAGING_ROOT"]), Path(os.environ["RELAY_EVENTS"])
STOPPED = 128 + signal.SIGTERM


class Trainer:
    """One attempt."""

    def __init__(self) -> None:
        self.step, self.weights = 0, hashlib.sha256(b"begin").hexdigest()
        self.stopping = False
        self._gate = os.open(os.environ["STUB_GATE"], os.O_RDWR) if "STUB_GATE" in os.environ else -1
        self._woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGTERM, self._stop)
        if resume := os.environ.get("RELAY_RESUME_FROM"):
            state = json.loads(Path(resume, "state.json").read_text())
            self.step, self.weights = state["step"], state["weights"]

    def _stop(self, *_: object) -> None:
        self.stopping = not os.environ.get("STUB_DEAF")

    def may_step(self) -> bool:
        """Waits for leave to make a step; False when it is to stop instead."""
        while self._gate >= 0 and not self.stopping:
            ready, _, _ = select.select([self._gate, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
            elif self._gate in ready:
                os.read(self._gate, 1)
                break
        return not self.stopping

    def train(self) -> int:
        """To the end, or until it is stopped; the exit code."""
        while self.step < STEPS:
            if not self.may_step():
                self.save()
                return STOPPED
            self.step += 1
            self.weights = hashlib.sha256(f"{self.weights} {self.step}".encode()).hexdigest()
            self.report()
            if SAVE_EVERY and self.step % SAVE_EVERY == 0:
                self.save()
            if self.step == FAIL_AT and FAILING:
                print("Traceback (most recent call last):\nRuntimeError: boom", file=sys.stderr, flush=True)
                return 3
        self.result()
        return 0

    def report(self) -> None:
        loss = int(self.weights[:8], 16) / 2**32
        say(type="metric", step=self.step, values={"train_loss": loss, "attempt": ATTEMPT})
        say(type="progress", step=self.step, total=STEPS)
        print(f"step {self.step} of {STEPS} loss {loss:.4f}", flush=True)

    def save(self) -> None:
        """Temporary name, fsync, rename, then the line."""
        name = f"step_{self.step:08d}"
        if (STAGING / name).exists() or (STAGING.parent / "ckpt" / name).exists():
            return
        temporary = STAGING / f".tmp-{name}"
        temporary.mkdir(parents=True)
        self.write(temporary)
        temporary.rename(STAGING / name)
        say(type="checkpoint", step=self.step, path=name, metrics={"eval_loss": 1.0 / (1 + self.step)})

    def write(self, folder: Path) -> None:
        with (folder / "state.json").open("w") as file:
            json.dump({"step": self.step, "weights": self.weights}, file)
            file.flush()
            os.fsync(file.fileno())
        size = int(os.environ.get("STUB_SIZE", "1000"))
        (folder / "weights.bin").write_bytes((self.weights.encode() * (size // 64 + 1))[:size])

    def result(self) -> None:
        output = Path(os.environ["RELAY_OUTPUT_DIR"])
        output.mkdir(parents=True, exist_ok=True)
        self.write(output)


def say(**line: Any) -> None:
    """One event line, whole."""
    if os.environ.get("STUB_SILENT"):
        return
    with EVENTS.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(Trainer().train())
