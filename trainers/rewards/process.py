"""A reward function in a process of its own, so that it cannot hang, leak into or break the trainer.

`python -m trainers.rewards.process FD CALL SEED` answers batches over a pair of connected sockets until the other end
closes.
"""

import contextlib
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from trainers.rewards.user_functions import call_function, import_function

_KILL_SECONDS = 5.0  #: seconds


class FunctionRaised(Exception):
    """The function raised an exception. The text is its type and message."""


class IsolatedFunction:
    """Calls a function in another process as if it were in this one. Raises FunctionRaised, also when the process died,
    or TimeoutError.
    """

    def __init__(self, call: str, timeout: float | None, seed: int) -> None:
        self._call, self._timeout, self._seed = call, timeout, seed
        self._connection: Connection | None = None
        self._end: Callable[[], int | None] = lambda: None

    def __call__(self, step: int, given: Mapping[str, Any]) -> Any:
        line = self._connection or self._start()
        try:
            line.send((step, dict(given)))
            if not line.poll(self._timeout):
                self._connection, _ = None, self._end()
                raise TimeoutError(f"took longer than {self._timeout:g} s")
            good, answer = line.recv()
        except (EOFError, ConnectionError) as error:
            self._connection, code = None, self._end()
            raise FunctionRaised(f"its process ended ({_ending(code)})") from error
        if not good:
            raise FunctionRaised(answer)
        return answer

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        argv = [sys.executable, "-m", "trainers.rewards.process", str(theirs.fileno()), self._call, str(self._seed)]
        hidden = {"CUDA_VISIBLE_DEVICES": ""}  # the GPU's memory is the trainer's
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], env={**os.environ, **hidden})
        theirs.close()
        self._connection, self._end = ours, weakref.finalize(self, _end, process, ours)
        return ours


def _end(process: "subprocess.Popen[bytes]", line: Connection) -> int:
    """End the process, unless it has closed the line and ends by itself; its exit code."""
    gone = line.poll(0)  # nothing was asked: only the end can be read
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_SECONDS if gone else 0)
    process.kill()
    line.close()
    return process.wait()


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code and code < 0 else f"exit code {code}"


def main(argv: list[str]) -> int:
    """Answer until nobody asks."""
    line, call, seed = Connection(int(argv[0])), argv[1], int(argv[2])
    function = None
    while True:
        try:
            step, given = line.recv()
        except (EOFError, OSError):
            return 0
        random.seed(f"{seed}:{step}")  # the same draws after a resume
        try:
            function = function or import_function(call)
            line.send((True, _to_plain_values(call_function(function, given))))
        except Exception as error:  # whatever it raises is said where it was asked
            line.send((False, f"{type(error).__name__}: {error}"))


def _to_plain_values(answer: Any) -> Any:
    """Return the answer without classes that the other process may not have."""
    if isinstance(answer, list | tuple):
        return [_to_plain_values(value) for value in answer]
    if isinstance(answer, int | float | str | None):
        return answer
    return float(answer) if hasattr(answer, "__float__") else repr(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
