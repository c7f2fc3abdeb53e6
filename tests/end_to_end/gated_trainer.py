"""A trainer without torch, by the contract of command runs. Each step needs the leave of a conductor, so that a test
decides how far training gets and knows for certain which attempt did which step.

Its state is a chain of hashes: a step done twice, left out or done from the wrong checkpoint shows in every later loss.
"""

import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

STAGING = Path(os.environ["RELAY_CKPT_STAGING_ROOT"])
TOTAL, SAVE_EVERY = int(os.environ["STEPS"]), int(os.environ["SAVE_EVERY"])
PADDING = "x" * int(os.environ["PADDING"])
BALLAST = int(os.environ.get("BALLAST", "0"))  #: bytes that each checkpoint has beside its state


def emit(**line: object) -> None:
    with open(os.environ["RELAY_EVENTS"], "ab", buffering=0) as events:
        events.write(json.dumps({"time": time.time(), **line}).encode() + b"\n")


def save(step: int, state: str) -> None:
    temporary, final = STAGING / f".tmp-{step}", STAGING / f"step_{step:08d}"
    temporary.mkdir(parents=True)
    (temporary / "state.json").write_text(json.dumps({"step": step, "state": state}))
    (temporary / "weights.bin").write_bytes(bytes.fromhex(state) * 4096)
    if BALLAST:
        (temporary / "ballast.bin").write_bytes(os.urandom(BALLAST))
    temporary.rename(final)
    emit(type="checkpoint", step=step, path=final.name, metrics={"loss": loss(state)})


def loss(state: str) -> float:
    return int(state[:8], 16) / 2**32


def resumed() -> tuple[int, str]:
    folder = os.environ.get("RELAY_RESUME_FROM")
    if not folder:
        return 0, hashlib.sha256(b"start").hexdigest()
    kept = json.loads(Path(folder, "state.json").read_text())
    assert Path(folder, "weights.bin").read_bytes() == bytes.fromhex(kept["state"]) * 4096
    return kept["step"], kept["state"]


def may_go_on(gate: socket.socket, wake: int, step: int) -> bool:
    """Asks for leave to do a step; False when a stop came first, RuntimeError when it is to fail."""
    gate.sendall(json.dumps({"ask": step}).encode() + b"\n")
    ready, _, _ = select.select([gate.fileno(), wake], [], [])
    answer = b"" if wake in ready else gate.recv(1)
    if answer == b"!":
        raise RuntimeError(f"step {step} went wrong")
    return answer == b"+"


def main() -> int:
    wake, poke = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(poke, False)
    signal.set_wakeup_fd(poke)
    signal.signal(signal.SIGTERM, lambda *_: None)
    step, state = resumed()
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect(os.environ["GATE"])
        lease = Path(os.environ["RELAY_EVENTS"]).parent.name.partition("-")[2]
        hello = {"run": os.environ["RELAY_RUN_ID"], "lease": lease, "from": step}
        hello["attempt"] = int(os.environ["RELAY_ATTEMPT"])
        gate.sendall(json.dumps({**hello, "pid": os.getpid()}).encode() + b"\n")
        print(f"attempt {hello['attempt']} goes on from step {step}", flush=True)
        saved = step
        while step < TOTAL:
            if not may_go_on(gate, wake, step + 1):
                if step > saved:
                    save(step, state)
                gate.sendall(json.dumps({"terms": len(os.read(wake, 100))}).encode() + b"\n")
                return 0
            step, state = step + 1, hashlib.sha256(bytes.fromhex(state) + b"step").hexdigest()
            emit(type="metric", step=step, values={"train_loss": loss(state), "learning_rate": 1e-3}, padding=PADDING)
            emit(type="progress", step=step, total=TOTAL)
            print(f"step {step}", flush=True)
            if step % SAVE_EVERY == 0 or step == TOTAL:
                save(step, state)
                saved = step
            gate.sendall(json.dumps({"done": step}).encode() + b"\n")
    Path(os.environ["RELAY_OUTPUT_DIR"], "result.json").write_text(json.dumps({"state": state}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
