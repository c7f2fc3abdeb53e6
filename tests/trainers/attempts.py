"""Attempts at a tiny run, in forks of a process that has loaded the libraries: a third of a second instead of ten."""

import hashlib
import json
import os
import re
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainers.environment import AttemptEnvironment
from trainers.launch import imports
from trainers.launch.control import CONTROL_VARIABLE, PROCESSES_VARIABLE, ControlFolder, Outcome

TIMES = re.compile(r".*(runtime|per_second|step_time)")
THREADS = 1


@dataclass(frozen=True)
class Attempt:
    """What one attempt left behind."""

    code: int
    folder: Path
    outcome: Outcome | None
    events: list[dict[str, Any]] = field(repr=False)

    @property
    def curve(self) -> dict[tuple[int, str], Any]:
        """Every logged value by step and name, without times and speeds."""
        metrics = [event for event in self.events if event["type"] == "metric"]
        return {
            (event["step"], name): value
            for event in metrics
            for name, value in event["values"].items()
            if not TIMES.match(name)
        }

    @property
    def steps_saved(self) -> list[int]:
        return [event["step"] for event in self.events if event["type"] == "checkpoint"]

    def checkpoint(self, step: int) -> Path:
        return self.folder / "staging" / f"step_{step:08d}"

    def weights(self) -> dict[str, str]:
        """Return the SHA-256 of every weights file of the result."""
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
    ranks: int = 1,
    before: Callable[[], object] = lambda: None,
    pins: dict[str, str] | None = None,
) -> Attempt:
    """Run one attempt in `folder` to its end. With `stop` it is stopped before its first step. Paths in `run` are
    absolute. `before` is called in each fork. The code is that of the first rank whose code is not 0.
    """
    with imports.without_garbage_collection():
        import trainers.runtime  # noqa: F401
        from trainers import methods

        if run["method"] in methods.NAMES:
            methods.load_method(run["method"])

    folder.mkdir(parents=True)
    contract = AttemptEnvironment(
        run_id="tiny",
        attempt=1,
        run_file=folder / "run.json",
        output=folder / "output",
        staging=folder / "staging",
        events=folder / "events.jsonl",
        resume_from=resume,
        pins=pins or {},
    )
    contract.run_file.write_text(json.dumps(run))
    control = ControlFolder(folder)
    if stop:
        control.request_stop()
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    worlds = [{**world, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)] if ranks > 1 else [{}]
    forks = [fork(partial(_rank, contract, environ, before), folder / "stderr.log") for environ in worlds]
    codes = [ended(each) for each in forks]
    return Attempt(next(filter(None, codes), 0), folder, control.read_outcome(), events(contract.events))


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a trainer; empty where it did not start."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _rank(contract: AttemptEnvironment, world: dict[str, str], before: Callable[[], object]) -> int:
    import torch

    from trainers import rank

    os.environ |= contract.to_environ() | {
        CONTROL_VARIABLE: str(contract.run_file.parent),
        PROCESSES_VARIABLE: world.get("WORLD_SIZE", "1"),
        **world,
    }
    torch.set_num_threads(THREADS)
    warnings.resetwarnings()  # the tests make errors of them
    sys.argv = ["rank"]
    before()
    return rank.main()


def fork(work: Callable[[], int], log: Path) -> int:
    """Start a fork that does `work` and exits with its result, with output in `log`; return its pid."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.alarm(500)
            code = work()
        except BaseException:
            os.write(2, traceback.format_exc().encode())  # sys.stderr is the tests' own
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def apart(check: Callable[[], object], folder: Path) -> None:
    """Run a check in a fork. A process in which the libraries have begun to compute cannot be forked any more."""
    code = ended(fork(lambda: 0 if check() is None else 1, folder / "apart.log"))
    assert code == 0, (folder / "apart.log").read_text()


def ended(pid: int) -> int:
    """Wait for a fork and return its exit code; 128 + number for a signal, as in a shell."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
