"""Starting the ranks and waiting for them, from a parent process that imports no ML library."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from trainers.launch.control import CONTROL_VARIABLE, FAILED, PROCESSES_VARIABLE, STOPPED, ControlFolder, Outcome

_PR_SET_PDEATHSIG = 1


#: The `distributed_type` that a section of accelerate's configuration asks for; without one it is DDP.
_DISTRIBUTED_TYPES = {"fsdp_config": "FSDP", "deepspeed_config": "DEEPSPEED"}


def missing_package(settings: Mapping[str, Any]) -> str:
    """Return one line that names what the launcher itself lacks on this host, or an empty text."""
    missing = "deepspeed_config" in settings and find_spec("deepspeed") is None
    return "launch.deepspeed_config needs the package deepspeed" if missing else ""


def build_command(processes: int, threads: int, settings: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the `accelerate launch` command line of the ranks, with the run file's `launch`: sections of accelerate's
    configuration file, which is written to `folder`. Without `--multi_gpu` accelerate would start one process, whatever
    number was asked for.
    """
    kind = next((kind for section, kind in _DISTRIBUTED_TYPES.items() if section in settings), None)
    several = ["--main_process_port", "0", *([] if kind else ["--multi_gpu"])] if processes > 1 else []
    return [
        *(sys.executable, "-m", "trainers.launch.launcher", *several),
        *(["--config_file", str(_write_configuration(settings, kind, folder))] if settings else []),
        *("--num_processes", str(processes), "--num_machines", "1", "--num_cpu_threads_per_process", str(threads)),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--module", "trainers.rank"),
    ]


def _write_configuration(settings: Mapping[str, Any], kind: str | None, folder: Path) -> Path:
    """Write accelerate's configuration file and return its path."""
    path = folder / "accelerate.json"
    sections = {"distributed_type": kind or "MULTI_GPU", "use_cpu": False, **settings}
    deepspeed = settings.get("deepspeed_config")
    if deepspeed is not None and "deepspeed_config_file" not in deepspeed:
        # Without it ZeRO-3 would save no weights that can be loaded; other stages do not look at it.
        sections["deepspeed_config"] = {"zero3_save_16bit_model": True, **deepspeed}
    path.write_text(json.dumps(sections))
    return path


def build_check_command() -> list[str]:
    """Return the command line of one process that checks the run and does not train."""
    return [sys.executable, "-m", "trainers.rank", "check"]


def threads_per_process(processes: int, environ: Mapping[str, str] = os.environ) -> int:
    """Return how many CPU threads each process gets: OMP_NUM_THREADS where it is set, else an equal share of
    the cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(environ.get("OMP_NUM_THREADS") or 0) or max(cores // processes, 1)


def cpu_environment(gpus: int | None) -> dict[str, str]:
    """Return default environment variables for training on CPUs: threads that wait sleep instead of spinning.

    Spinning wins microseconds while the cores are free (a tiny model's fastest steps took 4.8 ms instead of 6.4).
    Beside other programs it takes the cores from the very threads that it waits for: on two busy cores the median step
    took 2.5 to 4 times as long spinning as sleeping with SmolLM2-135M, and 2 to 6 times with a tiny model. The results
    are the same bits.
    """
    return {} if gpus else {"OMP_WAIT_POLICY": "passive"}


class Ranks:
    """The launcher and its ranks as one process group that can be stopped.

    SIGTERM and SIGINT become a stop file that the ranks see at the end of a step. The ranks are killed at once before
    their first step, when there is nothing to save, and on a second signal.
    """

    def __init__(self, control: ControlFolder) -> None:
        self._control = control
        self._launcher: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._exited = False

    def run(self, argv: Sequence[str], environ: Mapping[str, str], processes: int, cwd: str | None = None) -> Outcome:
        """Start the ranks, wait for them and return how they ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        variables = {
            **environ,
            CONTROL_VARIABLE: str(self._control.root),
            PROCESSES_VARIABLE: str(processes),
            "PYTHONSAFEPATH": "1",
        }
        self._launcher = subprocess.Popen(
            argv, env=variables, cwd=cwd, start_new_session=True, preexec_fn=_die_with_parent
        )
        if self._control.stop_requested() and not self._control.training_started():
            self._kill()
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            # A signal may come at any moment. Until the process is reaped, its number belongs to no other process.
            os.waitid(os.P_PID, self._launcher.pid, os.WEXITED | os.WNOWAIT)
            self._exited = True
        code = self._launcher.wait()
        return self._conclude(code)

    def _conclude(self, code: int) -> Outcome:
        """Return the recorded outcome, corrected by the launcher's exit code and by a kill."""
        recorded = self._control.read_outcome()
        if self._killed and recorded is None:
            kept = (
                "steps that were not saved are lost"
                if self._control.training_started()
                else "there was nothing new to save"
            )
            return Outcome(STOPPED, f"stopped at once, on request: {kept}")
        if recorded is None:
            return Outcome(
                code if code > 0 else 128 - code if code < 0 else FAILED, "the trainer ended and recorded no outcome"
            )
        if code == 0 or recorded.code != 0 or self._killed:
            return recorded
        return Outcome(FAILED, f"the launcher exited with {code} after the trainer had finished")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: request a stop, or kill the ranks where there is nothing to wait for."""
        again = self._control.stop_requested()
        self._control.request_stop()
        if self._launcher is not None and (again or not self._control.training_started()):
            self._kill()

    def _kill(self) -> None:
        """Kill the launcher's session. Its ranks are in it, and the kernel ends those that are not."""
        if self._launcher is not None and self._launcher.returncode is None and not self._exited:
            self._killed = True
            os.killpg(self._launcher.pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """Ask the kernel, in the child before exec, to end it with this process (Linux): no rank may outlive its parent."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
