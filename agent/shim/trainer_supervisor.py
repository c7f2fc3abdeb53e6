"""One job from its start to its exit: the trainer's tree, its deadlines, and the files that describe them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

from agent.shim.kill_deadlines import KillDeadlines
from agent.shim.processes import boot_id, boottime, has_handler, process, send_signal, take_priority
from agent.shim.tree import ProcessTree

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs milliseconds that every run would wait for
    from collections.abc import Mapping
    from typing import Any

PROTOCOL = 1  #: version of the socket's lines and of both files, to which fields are only added
LINGER = 2.0  #: seconds between SIGTERM and SIGKILL for processes that an ended trainer left behind
FIRST_SWEEP, SLOWEST_SWEEP = 0.02, 1.0  #: seconds between two looks at a tree that is being killed


class TrainerSupervisor:
    """Supervises one trainer. `record` says which (`shim.json`), `exit` how it ended (`exit.json`)."""

    def __init__(self, job: Mapping[str, Any], shim_id: str, runtime_dir: str) -> None:
        self.exit: dict[str, Any] | None = None  #: set once no process of the tree is left
        self.record_path = os.path.join(runtime_dir, f"{shim_id}.json")
        self._job = job
        self._deadlines = KillDeadlines(job, boottime())
        self._tree = ProcessTree()
        self._ended: float | None = None  #: when the trainer itself ended; its tree may live on
        self._sweep = FIRST_SWEEP
        self.record: dict[str, Any] = {
            "protocol": PROTOCOL,
            "shim": shim_id,
            "shim_pid": os.getpid(),
            "socket": os.path.join(runtime_dir, f"{shim_id}.sock"),
            "boot_id": boot_id(),
            "lease": job["lease"],
            "folder": job["folder"],
            "argv": job["argv"],
            "policy": job["policy"],
            "started": time.time(),
            "pid": None,
            "start_time": None,
        }

    def start(self) -> None:
        """Start the trainer. One that cannot be started has ended with code 127 and an error."""
        if self._job["policy"] == "stop":
            take_priority()  # its deadline comes in a busy trainer's time as well
        if error := self._try_start():
            self._ended = time.time()
            self._finish(error=error)
        for path in (self.record_path, self._path("shim.json")):
            self._write(path, self.record, durable=False)  # outside this boot it says nothing

    def _try_start(self) -> str:
        """Start it, and return why it could not be started."""
        if not self._deadlines.may_start(boottime()):
            return "its lease could no longer be trusted"
        try:
            self._tree.start(self._job, self.record["shim"])
        except OSError as error:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error)
        trainer = process(self._tree.pid)
        self.record |= {"pid": self._tree.pid, "start_time": trainer and trainer.start_time}
        return ""

    @property
    def phase(self) -> str:
        """The phase: `running`, `stopping`, `killing` or `ended`."""
        if self.exit is not None:
            return "ended"
        if self._deadlines.kill_reason is not None:
            return "killing"
        return "running" if self._tree.pid and self._deadlines.stop_reason is None else "stopping"

    @property
    def status(self) -> dict[str, Any]:
        shown = {name: getattr(self._deadlines, name) for name in ("trust", "trust_lost", "stop_reason", "kill_reason")}
        return {"phase": self.phase, "record": self.record, "exit": self.exit, **shown}

    # What time and the kernel bring

    def advance(self) -> bool:
        """Reap, and carry out what is due; return False once nobody will ask for the exit any more."""
        now = boottime()
        if self.exit is not None:
            return now < self._deadlines.orphaned_at
        gone = self._tree.reap()
        if self._ended is None and self._tree.status is not None:
            self._trainer_ended(now)
        if gone:
            self._finish()
        elif self._deadlines.pass_time(now):
            self._tree.ask()
        elif self._deadlines.kill_reason is not None:
            self._tree.kill()
            self._sweep = min(self._sweep * 2, SLOWEST_SWEEP)
        return True

    @property
    def next_moment(self) -> float:
        """The next moment at which `advance` has something to do by itself."""
        if self.exit is not None:
            return self._deadlines.orphaned_at
        return boottime() + self._sweep if self._deadlines.kill_reason is not None else self._deadlines.next_moment

    def _trainer_ended(self, now: float) -> None:
        """Give what the trainer left behind its grace: `bash run.sh` dies of SIGTERM before its program gets one."""
        self._ended = time.time()
        if self._deadlines.stop_reason is None:
            self._deadlines.kill_by(now + LINGER)
        self._tree.ask_the_rest()

    # What the agent asks

    def contact(self) -> None:
        self._deadlines.contact(boottime())

    def stop(self, grace: float | None, reason: str) -> None:
        """Send SIGTERM now and SIGKILL after `grace` seconds (the job's own when None)."""
        if self.exit is None:
            grace = self._job["grace"] if grace is None else grace
            if self._deadlines.stop(boottime(), grace, reason):
                self._tree.ask()

    def kill(self, reason: str) -> None:
        if self.exit is None:
            self._deadlines.kill(boottime(), reason)

    def trust(self, deadline: float) -> bool:
        """Return True when the trainer is trusted until `deadline`, False when it is being killed or has ended."""
        return self._deadlines.renew(deadline) and self.exit is None

    def dump(self) -> str:
        """Write what the tree is doing, and send the dump signal (faulthandler) to processes that catch it."""
        members, path = self._tree.members(), self._path("dump.json")
        signum = self._job.get("dump_signal") or 0
        self._write(path, {"time": time.time(), "processes": [describe(each.pid) for each in members]})
        for each in members if signum else ():
            if has_handler(each.pid, signum):
                send_signal(each, signum)
        return path

    # What it leaves on disk

    def _finish(self, error: str | None = None) -> None:
        code = 127 if self._tree.status is None else os.waitstatus_to_exitcode(self._tree.status)
        self.exit = {
            "protocol": PROTOCOL,
            "lease": self._job["lease"],
            "code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "error": error,
            "started": self.record["started"],
            "ended": self._ended,
            "reaped": time.time(),
            "stop_reason": self._deadlines.stop_reason,
            "kill_reason": self._deadlines.kill_reason,
            "kill_began": self._deadlines.kill_began,
            "trust": self._deadlines.trust,
            "trust_lost": self._deadlines.trust_lost,
        }
        self._write(self._path("exit.json"), self.exit)

    def _path(self, name: str) -> str:
        return os.path.join(self._job["folder"], name)

    def _write(self, path: str, value: object, *, durable: bool = True) -> None:
        """Write a file. A full disk costs the file and its error message, but not the answer, which is kept."""
        try:
            write_atomically(path, value, durable=durable)
        except OSError as error:
            with contextlib.suppress(OSError):
                print(f"shim {self.record['shim']}: {path}: {error}", file=sys.stderr, flush=True)


def write_atomically(path: str, value: object, *, durable: bool) -> None:
    """Write JSON, whole (and flushed to the disk when `durable`), or raise OSError and leave nothing."""
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w") as file:
            json.dump(value, file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def describe(pid: int) -> dict[str, Any]:
    """Return what the kernel says of a process; parts that this user may not read are left out."""
    shown: dict[str, Any] = {"pid": pid}
    for part in ("cmdline", "status", "wchan", "stack"):
        try:
            with open(f"/proc/{pid}/{part}", errors="replace") as file:
                shown[part] = file.read().replace("\0", " ")
        except OSError:
            continue
    return shown
