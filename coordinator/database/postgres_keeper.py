"""Runs the embedded Postgres server for as long as it is used. A program of its own, standard library only.

Every user of the server holds a shared lock on one file. The keeper waits for an exclusive one: when the kernel grants
it, the last user is gone, no matter how it ended, and the server is stopped. So a coordinator that is killed leaves no
server behind, and two coordinators on one data folder share a server that lasts as long as either.

A lock that it inherited from the process that started it, and that ends with it, shows that it lives.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

STOP_SECONDS = 30.0  # a fast shutdown takes well under a second; after this the server recovers at its next start


def stop_when_unused(server: "subprocess.Popen[bytes]", users: str) -> None:
    lock = os.open(users, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)


def main(order: dict[str, Any]) -> None:
    if os.fork():
        os._exit(0)  # the server belongs to all its users, not to the one that happened to start it
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler rather than SIG_IGN, which the server would inherit. The keeper ends with the server only.
        signal.signal(number, lambda *_: None)
    with open(order["log"], "ab") as log:
        server = subprocess.Popen(
            order["argv"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            user=order["uid"],
            group=order["gid"],
            extra_groups=None if order["uid"] is None else [],
            start_new_session=True,
        )
    threading.Thread(target=stop_when_unused, args=(server, order["users"]), daemon=True).start()
    server.wait()
    os._exit(0)  # not by way of the thread, which may wait for its lock for ever


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
