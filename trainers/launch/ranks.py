"""Starting the ranks and waiting for them, from a parent that imports no ML library."""

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

from trainers.launch.control import CONTROL, FAILED, PROCESSES, STOPPED, Control, Outcome

_PR_SET_PDEATHSIG = 1


#: What a section of accelerate's configuration makes of the ranks; otherwise they are DDP's.
_KINDS = {"fsdp_config": "FSDP", "deepspeed_config": "DEEPSPEED"}


def lack(settings: Mapping[str, Any]) -> str:
    """What the launcher itself would miss on this host, in a line; nothing where it has all."""
    missing = "deepspeed_config" in settings and find_spec("deepspeed") is None
    return "launch.deepspeed_config needs the package deepspeed" if missing else ""


def command(processes: int, threads: int, settings: Mapping[str, Any], folder: Path) -> list[str]:
    """`accelerate launch` of the rank, under the run file's `launch`: sections of accelerate's configuration file,
    which is written to `folder`. Without `--multi_gpu` accelerate would make one process, whatever was asked for.
    """
    kind = next((kind for section, kind in _KINDS.items() if section in settings), None)
    several = ["--main_process_port", "0", *([] if kind else ["--multi_gpu"])] if processes > 1 else []
    return [
        *(sys.executable, "-m", "trainers.launch.launcher", *several),
        *(["--config_file", str(_configuration(settings, kind, folder))] if settings else []),
        *("--num_processes", str(processes), "--num_machines", "1", "--num_cpu_threads_per_process", str(threads)),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--module", "trainers.rank"),
    ]


def _configuration(settings: Mapping[str, Any], kind: str | None, folder: Path) -> Path:
    path = folder / "accelerate.json"
    path.write_text(json.dumps({"distributed_type": kind or "MULTI_GPU", "use_cpu": False, **settings}))
    return path


def check_command() -> list[str]:
    """One process that looks and does not train."""
    return [sys.executable, "-m", "trainers.rank", "check"]


def threads_for(processes: int, environ: Mapping[str, str] = os.environ) -> int:
    """CPU threads for each process: as the environment says, else the cores shared out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(environ.get("OMP_NUM_THREADS") or 0) or max(cores // processes, 1)


def cpu_defaults(gpus: int | None) -> dict[str, str]:
    """What the environment says where nobody said otherwise: on CPUs, threads that wait sleep rather than spin.

    Spinning wins microseconds while the cores are free (a tiny model's fastest steps: 4.8 ms against 6.4). Where other
    programs use them it takes them from the thread that is waited for: beside other work on two cores the median step
    took 2.5 to 4 times as long spinning as sleeping with SmolLM2-135M, 2 to 6 times with a tiny model. Same bits.
    """
    return {} if gpus else {"OMP_WAIT_POLICY": "passive"}


class Ranks:
    """The launcher and its ranks, as one thing that can be asked to stop.

    SIGTERM and SIGINT become a stop file that the ranks see at a step's end. Before the first step there is nothing
    to save, and asked a second time somebody is in a hurry: then the ranks are killed.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._launcher: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._over = False

    def run(self, argv: Sequence[str], environ: Mapping[str, str], processes: int, cwd: str | None = None) -> Outcome:
        """Start, wait, and say how it ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        environment = {**environ, CONTROL: str(self._control.root), PROCESSES: str(processes), "PYTHONSAFEPATH": "1"}
        self._launcher = subprocess.Popen(
            argv, env=environment, cwd=cwd, start_new_session=True, preexec_fn=_die_with_parent
        )
        if self._control.stop_asked() and not self._control.training():
            self._kill()
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            # A signal may come at any moment. Until its number is given back, no other process can have it.
            os.waitid(os.P_PID, self._launcher.pid, os.WEXITED | os.WNOWAIT)
            self._over = True
        code = self._launcher.wait()
        return self._ended(code)

    def _ended(self, code: int) -> Outcome:
        said = self._control.outcome()
        if self._killed and said is None:
            kept = "what was not saved is lost" if self._control.training() else "nothing new was there to save"
            return Outcome(STOPPED, f"stopped as asked, at once: {kept}")
        if said is None:
            return Outcome(
                code if code > 0 else 128 - code if code < 0 else FAILED, "the trainer ended without saying how"
            )
        if code == 0 or said.code != 0 or self._killed:
            return said
        return Outcome(FAILED, f"the launcher ended with {code} after the trainer was done")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again = self._control.stop_asked()
        self._control.ask_to_stop()
        if self._launcher is not None and (again or not self._control.training()):
            self._kill()

    def _kill(self) -> None:
        """The launcher leads its own session; its ranks die with it by the kernel's hand."""
        if self._launcher is not None and self._launcher.returncode is None and not self._over:
            self._killed = True
            os.killpg(self._launcher.pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """In the child, before exec: SIGKILL of this parent must not leave ranks behind (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
