"""The trainer and everything it starts, as its parent sees them: start, ask, kill, reap.

The parent must be a subreaper, so that "no children left" means "nothing of it is left".
"""

from __future__ import annotations

import contextlib
import json
import os
import signal

from agent.shim.processes import Process, descendants, die_with_parent, process, processes, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs milliseconds that every run would wait for
    from collections.abc import Mapping
    from typing import Any, NoReturn

MARK = "RELAY_SHIM"  #: a variable in every trainer's environment, by which what outlives its shim is found


class ProcessTree:
    """The trainer (our direct child) and all its descendants."""

    def __init__(self) -> None:
        self.pid = 0  #: pid of the trainer; 0 before it is started and once it is reaped
        self.status: int | None = None  #: wait status of the trainer

    def start(self, job: Mapping[str, Any], mark: str) -> None:
        self.pid = spawn(job, mark)

    def members(self) -> list[Process]:
        return list(descendants({os.getpid()}, processes()))

    def ask(self) -> None:
        """Send SIGTERM to the trainer alone, which knows best how to stop the others."""
        target = process(self.pid) if self.pid else None
        if target is not None:
            send_signal(target, signal.SIGTERM)

    def ask_the_rest(self) -> None:
        """Send SIGTERM to the processes that outlived the trainer."""
        for each in self.members():
            send_signal(each, signal.SIGTERM)

    def kill(self) -> None:
        """Kill, and repeat until a sweep finds no new process: forks are outrun, not waited for."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        met: set[tuple[int, int]] = set()
        while new := [each for each in self.members() if (each.pid, each.start_time) not in met]:
            for each in new:
                send_signal(each, signal.SIGKILL)
                met.add((each.pid, each.start_time))

    def reap(self) -> bool:
        """Reap what has ended, and return True once nothing is left."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.pid, self.status = 0, ended[1]
        except ChildProcessError:
            return True
        return False


def spawn(job: Mapping[str, Any], mark: str) -> int:
    """Start the trainer in its own process group and return its pid.

    Raises OSError when the program, its folder or its log files cannot be opened.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    broken, report = os.pipe()
    streams = [os.open(os.devnull, os.O_RDONLY)]
    try:
        streams += [os.open(os.path.join(job["folder"], name), append, 0o644) for name in ("stdout.log", "stderr.log")]
        shim = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_trainer(job, mark, shim, streams, report)
        os.close(report)
        report = -1
        with open(broken, "rb", closefd=False) as pipe:
            error = pipe.read()
    finally:
        for fd in (broken, report, *streams):
            if fd >= 0:
                os.close(fd)
    if error:
        os.waitpid(pid, 0)
        raise OSError(*json.loads(error))
    return pid


def _become_trainer(job: Mapping[str, Any], mark: str, shim: int, streams: list[int], report: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        os.setpgid(0, 0)
        die_with_parent()
        if os.getppid() != shim:
            os._exit(127)
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signum, signal.SIG_DFL)  # what is ignored here would stay ignored past exec
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.chdir(job["cwd"])
        os.execvpe(job["argv"][0], job["argv"], {**job["env"], MARK: mark})
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else job["argv"][0]  # bytes: a place of PATH
        os.write(report, json.dumps([error.errno, error.strerror, name]).encode())
    finally:
        os._exit(127)
