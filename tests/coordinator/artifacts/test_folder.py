"""The artifact store, through gRPC and on disk."""

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from coordinator.artifacts.folder import FolderArtifacts
from relay.errors import BlobTooLarge, BlobUnknown, DigestMismatch, OffsetGap, StoreFull, TooLarge, from_rpc
from relay.v1 import artifacts_pb2 as pb
from relay.v1.artifacts_pb2_grpc import ArtifactsStub
from tests.conftest import RunningCoordinator

MIB = 1024 * 1024


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def _put(
    stub: ArtifactsStub, data: bytes, *, offset: int = 0, digest: str | None = None, piece: int = MIB
) -> pb.PutBlobResponse:
    async def requests() -> AsyncIterator[pb.PutBlobRequest]:
        header = pb.PutBlobHeader(digest=digest or _digest(data), size=len(data), offset=offset)
        yield pb.PutBlobRequest(header=header)
        for at in range(offset, len(data), piece):
            yield pb.PutBlobRequest(chunk=data[at : at + piece])

    return await stub.PutBlob(requests(), timeout=90)


async def _get(stub: ArtifactsStub, digest: str, offset: int = 0, *, verify: bool = False) -> bytes:
    request = pb.GetBlobRequest(digest=digest, offset=offset, verify=verify)
    return b"".join([response.chunk async for response in stub.GetBlob(request, timeout=90)])


async def _stat(stub: ArtifactsStub, digest: str) -> pb.BlobStat:
    return (await stub.StatBlobs(pb.StatBlobsRequest(digests=[digest]))).blobs[0]


async def _break_off(stub: ArtifactsStub, data: bytes, after: int) -> None:
    """Upload the first bytes, then be gone."""
    call = stub.PutBlob()
    await call.write(pb.PutBlobRequest(header=pb.PutBlobHeader(digest=_digest(data), size=len(data))))
    for at in range(0, after, MIB):
        await call.write(pb.PutBlobRequest(chunk=data[at : min(at + MIB, after)]))
    async with asyncio.timeout(60):
        while (await _stat(stub, _digest(data))).offset < after:  # noqa: ASYNC110  # there is nothing to wait on
            await asyncio.sleep(0)
    call.cancel()


async def test_there_and_back(coordinator: RunningCoordinator) -> None:
    for data in (b"", b"x", _bytes(3 * MIB + 7)):
        put = await _put(coordinator.artifacts, data)
        assert (put.digest, put.size) == (_digest(data), len(data))
        assert await _get(coordinator.artifacts, _digest(data)) == data
    assert await _get(coordinator.artifacts, _digest(data), offset=2 * MIB) == data[2 * MIB :]
    assert (await _put(coordinator.artifacts, data)).size == len(data)  # again: nothing to do


async def test_an_upload_that_broke_off_goes_on(coordinator: RunningCoordinator) -> None:
    data = _bytes(4 * MIB)
    await _break_off(coordinator.artifacts, data, 2 * MIB + 5)
    stat = await _stat(coordinator.artifacts, _digest(data))
    assert not stat.complete and stat.offset == 2 * MIB + 5
    await _put(coordinator.artifacts, data, offset=stat.offset)
    assert await _get(coordinator.artifacts, _digest(data)) == data
    assert list((coordinator.artifact_dir / "partial").iterdir()) == []


async def test_an_upload_goes_on_while_the_broken_one_still_seems_to_live(coordinator: RunningCoordinator) -> None:
    data = _bytes(2 * MIB)
    call = coordinator.artifacts.PutBlob()
    await call.write(pb.PutBlobRequest(header=pb.PutBlobHeader(digest=_digest(data), size=len(data))))
    await call.write(pb.PutBlobRequest(chunk=data[:MIB]))
    async with asyncio.timeout(60):
        while (await _stat(coordinator.artifacts, _digest(data))).offset < MIB:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await _put(coordinator.artifacts, data, offset=MIB)
    assert await _get(coordinator.artifacts, _digest(data)) == data
    call.cancel()


async def test_other_bytes_are_refused_and_not_kept(coordinator: RunningCoordinator) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        await _put(coordinator.artifacts, b"these", digest=_digest(b"those"))
    assert isinstance(from_rpc(refused.value), DigestMismatch)
    assert (await _stat(coordinator.artifacts, _digest(b"those"))).offset == 0


async def test_a_damaged_beginning_is_sent_again(coordinator: RunningCoordinator) -> None:
    data = _bytes(2 * MIB)
    await _break_off(coordinator.artifacts, data, MIB)
    (partial,) = (coordinator.artifact_dir / "partial").iterdir()
    partial.write_bytes(bytes(MIB))
    with pytest.raises(grpc.RpcError) as refused:
        await _put(coordinator.artifacts, data, offset=MIB)
    gap = from_rpc(refused.value)
    assert isinstance(gap, OffsetGap) and gap.metadata["expected"] == "0"
    await _put(coordinator.artifacts, data)


async def test_beyond_what_is_there_is_a_gap(coordinator: RunningCoordinator) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        await _put(coordinator.artifacts, b"0123456789", offset=5)
    gap = from_rpc(refused.value)
    assert isinstance(gap, OffsetGap) and gap.metadata["expected"] == "0"


async def test_the_same_blob_from_many_at_once(coordinator: RunningCoordinator) -> None:
    data = _bytes(3 * MIB)
    puts = await asyncio.gather(*(_put(coordinator.artifacts, data, piece=100_000) for _ in range(4)))
    assert {put.digest for put in puts} == {_digest(data)}
    assert await _get(coordinator.artifacts, _digest(data)) == data


async def test_unknown_blobs_and_large_messages(coordinator: RunningCoordinator) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        await _get(coordinator.artifacts, _digest(b"nobody has this"))
    assert isinstance(from_rpc(unknown.value), BlobUnknown)
    with pytest.raises(grpc.RpcError) as large:
        await _put(coordinator.artifacts, _bytes(2 * MIB - 1000), piece=2 * MIB)
    assert isinstance(from_rpc(large.value), TooLarge)


async def test_a_path_is_not_a_digest(coordinator: RunningCoordinator) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        await _get(coordinator.artifacts, "sha256:../../../../etc/passwd")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: data[:-1] + b"?", lambda data: b""])
async def test_a_damaged_blob_is_set_aside_when_asked_and_the_next_upload_repairs_it(
    coordinator: RunningCoordinator, damage: Callable[[bytes], bytes]
) -> None:
    """F16: also for the second one who asks, and never without being asked."""
    data, store = _bytes(2 * MIB, seed=7), coordinator.artifacts
    await _put(store, data)
    (blob,) = (coordinator.artifact_dir / "blobs").rglob(_digest(data).removeprefix("sha256:"))
    blob.write_bytes(damage(data))
    assert await _get(store, _digest(data)) == damage(data)
    asked = await asyncio.gather(*(_get(store, _digest(data), verify=True) for _ in range(2)), return_exceptions=True)
    refused = {type(from_rpc(error)) for error in asked if isinstance(error, grpc.RpcError)}
    assert len(asked) == 2 and refused <= {DigestMismatch, BlobUnknown} and DigestMismatch in refused
    (kept,) = (coordinator.artifact_dir / "damaged").iterdir()
    assert kept.read_bytes() == damage(data)
    stat = await _stat(store, _digest(data))
    assert (stat.complete, stat.offset) == (False, 0)
    await _put(store, data)
    assert await _get(store, _digest(data), verify=True) == data


def test_a_check_that_comes_too_late_leaves_the_repaired_blob_alone(tmp_path: Path) -> None:
    store, data = FolderArtifacts(tmp_path, limit=1 << 30), bytes(65 * MIB)
    path = tmp_path / "blobs" / _digest(data)[7:9] / _digest(data)[7:]
    path.parent.mkdir()
    path.write_bytes(data[:-1] + b"?")
    checking = store.check(_digest(data))
    assert next(checking) == 64 * MIB
    repaired = tmp_path / "repaired"
    repaired.write_bytes(data)
    repaired.replace(path)
    with pytest.raises(DigestMismatch):
        next(checking)
    assert path.exists() and not list((tmp_path / "damaged").iterdir())


def test_the_cap_holds_over_replicas_that_share_the_folder(tmp_path: Path) -> None:
    first, second = (FolderArtifacts(tmp_path, limit=100) for _ in range(2))
    with first.upload(_digest(b"a" * 60), 60, 0) as upload:
        upload.write(b"a" * 60)
        upload.finish()
    assert second.read(_digest(b"a" * 60), 1000) == b"a" * 60
    with pytest.raises(StoreFull), second.upload(_digest(b"b" * 60), 60, 0):
        pass
    with pytest.raises(BlobTooLarge), first.upload(_digest(b"c"), 101, 0):
        pass


def test_an_upload_that_breaks_off_again_and_again_fills_nothing(tmp_path: Path) -> None:
    store, data = FolderArtifacts(tmp_path, limit=100), b"a" * 90
    for at in range(0, 90, 30):
        with store.upload(_digest(data), 90, at):
            pass  # nothing came
        with store.upload(_digest(data), 90, at) as upload:
            upload.write(data[at : at + 30])
            if at == 60:
                upload.finish()
    assert store.read(_digest(data), 100) == data
    with pytest.raises(StoreFull), store.upload(_digest(b"b"), 11, 0):
        pass


KILLED = """
import sys
from pathlib import Path
from coordinator.artifacts.folder import FolderArtifacts
with FolderArtifacts(Path(sys.argv[1]), limit=10**9).upload(sys.argv[2], int(sys.argv[3]), 0) as upload:
    upload.write(b"k" * 1000)
    print("written", flush=True)
    sys.stdin.read()
"""


def test_killed_in_the_middle_nothing_can_be_seen_and_the_rest_is_enough(tmp_path: Path) -> None:
    data = b"k" * 2000
    command = [sys.executable, "-c", KILLED, str(tmp_path), _digest(data), str(len(data))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    store = FolderArtifacts(tmp_path, limit=10**9)
    stat = store.stat(_digest(data))
    assert (stat.complete, stat.offset) == (False, 1000)
    with store.upload(_digest(data), len(data), 1000) as upload:
        upload.write(data[1000:])
        upload.finish()
    assert store.read(_digest(data), 10_000) == data
