"""A real S3: seaweedfs on this machine, for as long as a block lasts."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PATIENCE = 60.0  #: seconds until it answers
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"}


@contextmanager
def seaweed(folder: Path, bucket: str = "relay") -> Iterator[str]:
    """Its endpoint, `http://127.0.0.1:PORT`, once it has the bucket."""
    folder.mkdir(parents=True, exist_ok=True)
    s3, *others = _free_ports(8)
    names = (
        "s3.port.grpc",
        *(f"{each}.port{grpc}" for each in ("master", "volume", "filer") for grpc in ("", ".grpc")),
    )
    command = [
        *(str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-s3", f"-s3.port={s3}", "-s3.iam=false", "-filer", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=1024", "-volume.max=0"),
        *(f"-{name}={port}" for name, port in zip(names, others, strict=True)),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(f"http://127.0.0.1:{s3}/{bucket}", process)
        yield f"http://127.0.0.1:{s3}"
    finally:
        process.kill()
        process.wait()


def environment(endpoint: str) -> dict[str, str]:
    """What a process needs to use it."""
    return {**KEYS, "AWS_ENDPOINT_URL": endpoint}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def _wait(bucket: str, process: subprocess.Popen[bytes]) -> None:
    """Until the bucket is made."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "seaweedfs has ended; see its log"
        try:
            with urllib.request.urlopen(urllib.request.Request(bucket, method="PUT"), timeout=PATIENCE):
                return
        except OSError:  # it does not listen yet, or says that it is not ready
            continue
    raise TimeoutError(f"seaweedfs does not make {bucket}")
