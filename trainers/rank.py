"""The process that trains: one for each GPU, started by `trainers.launch.launcher`."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.environment import AttemptEnvironment
from trainers.events import EventLog
from trainers.launch import imports
from trainers.launch.control import FAILED, PROCESSES_VARIABLE, SUCCEEDED, ControlFolder, Outcome

if TYPE_CHECKING:
    from runfile import RunFile

_PR_SET_PDEATHSIG = 1
#: Settings that keep the libraries quiet and reproducible: no progress bars in logs, no threads that outlive a fork, no
#: telemetry.
_LIBRARY_SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def die_with_parent() -> None:
    """Ask the kernel to end this process with its launcher (Linux), so that no rank trains on when nobody
    waits for it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Train or check, record the outcome and return its exit code."""
    die_with_parent()
    for name, value in _LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    control = ControlFolder.from_environ()
    environment = AttemptEnvironment.from_environ(os.environ, Path(os.environ["RELAY_RUN_FILE"]))
    with EventLog(environment.events) as events:
        outcome = _run_attempt(environment, control, events)
    control.record_outcome(outcome)
    return outcome.code


def _run_attempt(environment: AttemptEnvironment, control: ControlFolder, events: EventLog) -> Outcome:
    """Run the attempt and return its outcome. Raises what is not expected, after it has been recorded."""
    with imports.without_garbage_collection():  # it takes seconds
        from runfile import parse_run_file
        from trainers import methods, runtime

    try:
        run = parse_run_file(json.loads(environment.run_file.read_text()))
        if run.method == "evaluate":
            return _evaluate(run, environment, events)
        with imports.without_garbage_collection():
            methods.load_method(run.method)
        job = runtime.TrainingJob(run, environment, control, int(os.environ[PROCESSES_VARIABLE]))
        if sys.argv[1:] == ["check"]:
            print(runtime.check_run(job))
            return Outcome(SUCCEEDED)
        return runtime.train_run(job, events)
    except Exception as error:
        expected = runtime.expected_outcome(error)
        outcome = expected or Outcome(FAILED, f"{type(error).__name__}: {error}".strip())
        if control.record_outcome(outcome):
            events.log_message("error", outcome.message)
        if expected is None:
            raise
        return outcome


def _evaluate(run: "RunFile", environment: AttemptEnvironment, events: EventLog) -> Outcome:
    """Run or check an attempt of `method: evaluate`."""
    from trainers import evaluation

    processes = int(os.environ[PROCESSES_VARIABLE])
    if sys.argv[1:] == ["check"]:
        print(evaluation.check(run, environment, processes))
        return Outcome(SUCCEEDED)
    return evaluation.evaluate(run, environment, processes, events)


if __name__ == "__main__":
    sys.exit(main())
