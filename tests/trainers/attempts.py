"""Attempts at a tiny run, in forks of a process that has the libraries loaded: a third of a second instead of ten."""

import hashlib
import json
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.contract import Contract
from trainers.control import CONTROL, PROCESSES, Control, Outcome

_TIMES = re.compile(r".*(runtime|per_second)")
THREADS = 1


@dataclass(frozen=True)
class Attempt:
    """What one attempt left behind."""

    code: int
    folder: Path
    said: Outcome | None
    events: list[dict[str, Any]] = field(repr=False)

    @property
    def curve(self) -> dict[tuple[int, str], Any]:
        """Every logged value by step and name, times and speeds aside."""
        metrics = [event for event in self.events if event["type"] == "metric"]
        return {
            (event["step"], name): value
            for event in metrics
            for name, value in event["values"].items()
            if not _TIMES.match(name)
        }

    @property
    def steps_saved(self) -> list[int]:
        return [event["step"] for event in self.events if event["type"] == "checkpoint"]

    def checkpoint(self, step: int) -> Path:
        return self.folder / "staging" / f"step_{step:08d}"

    def weights(self) -> dict[str, str]:
        """SHA-256 of every weights file of the result."""
        files = sorted((self.folder / "output").glob("*.safetensors"))
        assert files, "no result"
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def messages(self, level: str) -> list[str]:
        return [event["text"] for event in self.events if event["type"] == "message" and event["level"] == level]


def make(
    folder: Path,
    run: dict[str, Any],
    *,
    resume: Path | None = None,
    stop: bool = False,
    before: Callable[[], object] = lambda: None,
) -> Attempt:
    """One attempt in `folder`, to its end; with `stop` it is asked to stop before its first step. Paths in `run` are
    absolute. `before` is called in the fork.
    """
    folder.mkdir(parents=True)
    contract = Contract(
        run_id="tiny",
        attempt=1,
        run_file=folder / "run.json",
        output=folder / "output",
        staging=folder / "staging",
        events=folder / "events.jsonl",
        resume_from=resume,
        pins={},
    )
    contract.run_file.write_text(json.dumps(run))
    control = Control(folder)
    if stop:
        control.ask_to_stop()
    code = forked(lambda: _rank(contract, before), folder / "stderr.log")
    lines = contract.events.read_text().splitlines() if contract.events.exists() else []
    return Attempt(code, folder, control.outcome(), [json.loads(line) for line in lines])


def _rank(contract: Contract, before: Callable[[], object]) -> int:
    import torch

    from trainers import rank

    os.environ |= contract.to_environ() | {CONTROL: str(contract.run_file.parent), PROCESSES: "1"}
    torch.set_num_threads(THREADS)
    warnings.resetwarnings()  # the tests make errors of them
    sys.argv = ["rank"]
    before()
    return rank.main()


def forked(work: Callable[[], int], log: Path) -> int:
    """The exit code of `work` done in a fork, whose output goes to `log`; 128 + number for a signal, as in a shell."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.alarm(100)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
