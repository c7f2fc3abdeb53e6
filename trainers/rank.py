"""The process that trains: one for each GPU, started by `trainers.launch.launcher`."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.environment import Contract
from trainers.events import EventLog
from trainers.launch import imports
from trainers.launch.control import FAILED, PROCESSES, SUCCEEDED, Control, Outcome

if TYPE_CHECKING:
    from runfile import RunFile

_PR_SET_PDEATHSIG = 1
#: Quiet, reproducible libraries: no bars among the lines of a log, no threads that outlive a fork, nothing sent to
#: anyone.
_LIBRARIES = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def die_with_parent() -> None:
    """Ask the kernel to end this process with its launcher (Linux): a rank that nobody waits for would train on for
    nobody.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Train, or only `check`; the exit code is the outcome's."""
    die_with_parent()
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    control = Control.from_environ()
    contract = Contract.from_environ(os.environ, Path(os.environ["RELAY_RUN_FILE"]))
    with EventLog(contract.events) as events:
        outcome = _run(contract, control, events)
    control.conclude(outcome)
    return outcome.code


def _run(contract: Contract, control: Control, events: EventLog) -> Outcome:
    with imports.uncollected():  # seconds of it, and only here
        from runfile import parse
        from trainers import methods, runtime

    try:
        run = parse(json.loads(contract.run_file.read_text()))
        if run.method == "evaluate":
            return _evaluate(run, contract, events)
        with imports.uncollected():
            methods.load(run.method)
        job = runtime.Job(run, contract, control, int(os.environ[PROCESSES]))
        if sys.argv[1:] == ["check"]:
            print(runtime.check(job))
            return Outcome(SUCCEEDED)
        return runtime.train(job, events)
    except Exception as error:
        expected = runtime.outcome_of(error)
        outcome = expected or Outcome(FAILED, f"{type(error).__name__}: {error}".strip())
        if control.conclude(outcome):
            events.message("error", outcome.line)
        if expected is None:
            raise
        return outcome


def _evaluate(run: "RunFile", contract: Contract, events: EventLog) -> Outcome:
    from trainers import evaluation

    processes = int(os.environ[PROCESSES])
    if sys.argv[1:] == ["check"]:
        print(evaluation.check(run, contract, processes))
        return Outcome(SUCCEEDED)
    return evaluation.evaluate(run, contract, processes, events)


if __name__ == "__main__":
    sys.exit(main())
