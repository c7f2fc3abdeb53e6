"""A trainer that is hard to kill: it and its children ignore SIGTERM, and many of them have sessions of their own.

Every process of its tree has the same connection open, which therefore closes when the last of them ends: the kernel
tells the process at the other end. Standard library only. Its environment:

    WITNESS=path    the Unix socket to connect to
    BRANCHES=3      grandchildren, each in a session of its own and orphaned
    BUSY=0          children in this session that compute forever

A second attempt has nothing to do: it connects, and ends.
"""

import json
import os
import signal
import socket


def start(busy: int, branches: int) -> None:
    """Returns once all of them are there."""
    there, arrive = os.pipe()
    for _ in range(busy):
        if os.fork() == 0:
            os.write(arrive, b"+")
            while True:
                pass
    for _ in range(branches):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(arrive, b"+")
                while True:
                    signal.pause()
            os._exit(0)
    for _ in range(busy + branches):
        os.read(there, 1)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt = int(os.environ["RELAY_ATTEMPT"])
    witness = socket.socket(socket.AF_UNIX)
    witness.connect(os.environ["WITNESS"])
    if attempt == 1:
        start(int(os.environ["BUSY"]), int(os.environ["BRANCHES"]))
    hello = {"run": os.environ["RELAY_RUN_ID"], "attempt": attempt, "shim": os.getppid()}
    witness.sendall(json.dumps(hello).encode() + b"\n")
    while attempt == 1:
        signal.pause()


if __name__ == "__main__":
    main()
