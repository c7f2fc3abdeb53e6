"""The shim's process: a socket that agents talk to, one loop, at most one job. `agent.shim` describes the whole."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys

from agent.shim.processes import AlarmClock, become_subreaper, boottime
from agent.shim.trainer_supervisor import TrainerSupervisor

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs milliseconds that every run would wait for
    from collections.abc import Callable, Mapping
    from typing import Any

MAX_LINE = 8 << 20  #: bytes of one request; a job carries a whole environment
MAX_PEERS = 64
UNCLAIMED = 60.0  #: seconds that a spare waits for its first connection


class ShimConnection:
    """One connection. Requests and replies are single lines; only the reply to `wait` may come late."""

    __slots__ = ("buffer", "connection", "waiting")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.buffer = b""
        self.waiting = False

    def lines(self) -> list[bytes] | None:
        """Return the requests that have arrived; None when the peer is gone or sends what is no request."""
        try:
            received = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        return lines if received and len(self.buffer) <= MAX_LINE else None

    def send(self, reply: Mapping[str, Any]) -> None:
        """Send a reply. Replies fit the socket's buffer; a peer that does not read them is not waited for."""
        line = json.dumps(reply).encode() + b"\n"
        with contextlib.suppress(OSError):
            if self.connection.send(line) != len(line):
                self.connection.shutdown(socket.SHUT_RDWR)


class ShimServer:
    """The shim's server: first a spare, then the socket of one trainer supervisor, then the keeper of its exit."""

    def __init__(self, shim_id: str, runtime_dir: str, listener: socket.socket) -> None:
        self._id = shim_id
        self._runtime_dir = runtime_dir
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._alarm = AlarmClock()
        self._peers: set[ShimConnection] = set()
        self._unclaimed_until = boottime() + UNCLAIMED
        self._supervisor: TrainerSupervisor | None = None
        self._done = False

    def serve(self) -> None:
        """Serve until the exit has been taken, or until nobody will ever ask for it."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._alarm.clear)
        self._catch_signals()
        while not self._done:
            self._alarm.set(self._next_moment())
            for key, _ in self._selector.select():
                key.data()
            self._advance()
        remove(os.path.join(self._runtime_dir, f"{self._id}.sock"))

    def _catch_signals(self) -> None:
        """Have a child's end and SIGTERM wake the selector; ignore the signals of terminals."""
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._handle_signals)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, lambda *_: None)
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)

    def _handle_signals(self) -> None:
        """On SIGTERM (the host goes down, or an operator means this process) give the trainer its grace."""
        if signal.SIGTERM not in self._woken.recv(4096):
            return
        if self._supervisor is None:
            self._done = True
        else:
            self._supervisor.stop(None, "signal")

    def _next_moment(self) -> float | None:
        if self._supervisor is not None:
            return self._supervisor.next_moment
        return None if self._peers else self._unclaimed_until

    def _advance(self) -> None:
        if self._supervisor is None:
            self._done = self._done or (not self._peers and boottime() >= self._unclaimed_until)
            return
        self._done = self._done or not self._supervisor.advance()
        if self._supervisor.exit is not None:
            for peer in self._peers:
                if peer.waiting:
                    peer.waiting = False
                    peer.send({"ok": True, "exit": self._supervisor.exit})

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if len(self._peers) >= MAX_PEERS:
            connection.close()
            return
        peer = ShimConnection(connection)
        self._peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read_requests(peer))

    def _read_requests(self, peer: ShimConnection) -> None:
        lines = peer.lines()
        for line in lines or ():
            reply = self._answer(peer, line)
            if reply is not None:
                peer.send({"ok": True, **reply})
        if lines is None:
            self._hang_up(peer)

    def _hang_up(self, peer: ShimConnection) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        self._peers.discard(peer)
        if self._supervisor is None and not self._peers:
            self._done = True  # a spare of an agent that has ended

    def _answer(self, peer: ShimConnection, line: bytes) -> Mapping[str, Any] | None:
        """Return the reply to one request, or None when it comes later."""
        try:
            request = json.loads(line)
            if request["op"] == "start":
                return self._start(request["job"])
            if self._supervisor is None:
                return {"phase": "spare"}
            self._supervisor.contact()
            if request["op"] == "wait":
                peer.waiting = True
                return None
            if request["op"] == "forget":
                return self._forget(self._supervisor)
            return OPERATIONS[request["op"]](self._supervisor, request)
        except (ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _start(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._supervisor is not None:
            raise ValueError("a job was started before")
        self._supervisor = TrainerSupervisor(job, self._id, self._runtime_dir)
        log_to(os.path.join(job["folder"], "shim.log"))
        self._supervisor.start()
        return self._supervisor.status

    def _forget(self, supervisor: TrainerSupervisor) -> Mapping[str, Any]:
        if supervisor.exit is None:
            raise ValueError("the trainer is not reaped yet")
        remove(supervisor.record_path)
        self._done = True
        return {}


def _stop(supervisor: TrainerSupervisor, request: Mapping[str, Any]) -> Mapping[str, Any]:
    supervisor.stop(float(request["grace"]), str(request["reason"]))
    return {"phase": supervisor.phase}


def _kill(supervisor: TrainerSupervisor, request: Mapping[str, Any]) -> Mapping[str, Any]:
    supervisor.kill(str(request["reason"]))
    return {"phase": supervisor.phase}


OPERATIONS: dict[str, Callable[[TrainerSupervisor, Mapping[str, Any]], Mapping[str, Any]]] = {
    "status": lambda supervisor, _: supervisor.status,
    "stop": _stop,
    "kill": _kill,
    "trust": lambda supervisor, request: {"trusted": supervisor.trust(float(request["deadline"]))},
    "dump": lambda supervisor, _: {"path": supervisor.dump()},
}


def remove(path: str) -> None:
    """Remove a file that the agent may remove at the same time; whoever is second finds nothing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def log_to(path: str) -> None:
    """Send messages and tracebacks to a file from here on; without the file they are lost, and nothing else is."""
    with contextlib.suppress(OSError), open(path, "a") as file:
        os.dup2(file.fileno(), 2)


def main() -> None:
    """Serve on the listening socket that is standard input."""
    shim_id, runtime_dir = sys.argv[1:]
    listener = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    become_subreaper()
    os.chdir("/")
    ShimServer(shim_id, runtime_dir, listener).serve()


if __name__ == "__main__":
    main()
