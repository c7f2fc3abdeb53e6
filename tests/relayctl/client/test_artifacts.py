"""Files by content, against the coordinator's own store behind connections that break."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from coordinator.artifacts.folder import FolderArtifacts as Store
from coordinator.rpc.artifacts import ArtifactsService
from coordinator.rpc.interceptors import CallGuard
from relay import errors
from relay.v1 import artifacts_pb2 as pb
from relay.v1 import artifacts_pb2_grpc
from relayctl.client.artifacts import Blob, PullFailed, hash_files
from relayctl.client.client import RelayClient
from storage import manifest
from tests.relayctl.flaky import serving


class Breaking(ArtifactsService):
    """The real service, whose streams break off after so many messages as long as `cuts` lasts."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.cuts: list[int] = []
        self.headers: list[pb.PutBlobHeader] = []
        self.asked: list[int] = []
        self.flips = 0  #: so many chunks arrive as other bytes

    async def PutBlob(self, requests: AsyncIterator[pb.PutBlobRequest], context: Any) -> pb.PutBlobResponse:
        left = self.cuts.pop(0) if self.cuts else None

        async def cut() -> AsyncIterator[pb.PutBlobRequest]:
            nonlocal left
            async for request in requests:
                if request.HasField("header"):
                    self.headers.append(request.header)
                if left == 0:
                    await context.abort(grpc.StatusCode.INTERNAL, "upstream prematurely closed")
                left = None if left is None else left - 1
                yield request

        return await super().PutBlob(cut(), context)

    async def GetBlob(self, request: pb.GetBlobRequest, context: Any) -> AsyncIterator[pb.GetBlobResponse]:
        left = self.cuts.pop(0) if self.cuts else None
        self.asked.append(request.offset)
        async for piece in super().GetBlob(request, context):
            if piece.chunk and self.flips:
                self.flips -= 1
                piece.chunk = bytes(len(piece.chunk))
            if left == 0:
                await context.abort(grpc.StatusCode.CANCELLED, "backend gone")
            left = None if left is None else left - 1
            yield piece


@pytest.fixture
def service(tmp_path: Path) -> Breaking:
    return Breaking(Store(tmp_path / "store", limit=1 << 30))


@pytest.fixture
async def client(service: Breaking) -> AsyncIterator[RelayClient]:
    def register(server: aio.Server) -> None:
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(service, server)

    async with serving(register, CallGuard()) as address, RelayClient.connect(address) as client:
        yield client


def write_files(folder: Path, **files: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def count_sent_bytes(client: RelayClient, blobs: list[Blob]) -> int:
    """Upload what is missing and return how many bytes were reported as progress."""
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size

    await client.artifacts.upload(await client.artifacts.find_missing(blobs), count)
    return done


async def test_only_what_is_missing_is_sent_and_each_content_once(
    client: RelayClient, service: Breaking, tmp_path: Path
) -> None:
    files = write_files(tmp_path / "in", a=b"same", b=b"same", c=noise(3 << 20), empty=b"")
    blobs = list((await hash_files(files)).values())
    assert await count_sent_bytes(client, blobs) == 4 + (3 << 20)
    assert len(service.headers) == 3
    assert await client.artifacts.find_missing(blobs) == {}
    assert await count_sent_bytes(client, blobs) == 0


async def test_an_upload_that_broke_off_goes_on_where_it_was(
    client: RelayClient, service: Breaking, tmp_path: Path
) -> None:
    [file] = write_files(tmp_path / "in", a=noise(5 << 20))
    blob = (await hash_files([file]))[file]
    service.cuts = [4, 3]
    assert await count_sent_bytes(client, [blob]) == blob.size
    assert service.headers[0].offset == 0 and len(service.headers) == 3
    assert await client.artifacts.find_missing([blob]) == {}


async def test_an_upload_whose_beginning_has_gone_begins_anew(client: RelayClient, tmp_path: Path) -> None:
    """Another upload of the same bytes became whole, or was forgotten, after the store was asked."""
    [file] = write_files(tmp_path / "in", a=noise(1 << 20))
    blob = (await hash_files([file]))[file]
    await client.artifacts.upload({blob: blob.size // 2})
    assert await client.artifacts.find_missing([blob]) == {}


async def test_a_file_that_changes_while_it_is_sent_is_named(client: RelayClient, tmp_path: Path) -> None:
    [file] = write_files(tmp_path / "in", a=noise(1 << 20))
    blob = (await hash_files([file]))[file]
    file.write_bytes(noise(1 << 20, seed=2))
    with pytest.raises(errors.DigestMismatch, match="changed while it was being uploaded"):
        await count_sent_bytes(client, [blob])


async def publish(client: RelayClient, folder: Path) -> manifest.Manifest:
    content = manifest.describe_folder(folder)
    blobs = list((await hash_files(manifest.list_files(folder))).values())
    await count_sent_bytes(client, [*blobs, Blob.from_bytes(content.to_bytes())])
    return content


async def test_a_result_is_pulled_whole_verified_and_through_cuts(
    client: RelayClient, service: Breaking, tmp_path: Path
) -> None:
    write_files(tmp_path / "out", model=noise(5 << 20), readme=b"hello", empty=b"")
    (tmp_path / "out" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "out" / "run.sh").chmod(0o755)
    published = await publish(client, tmp_path / "out")
    service.cuts = [2, 1]
    content = await client.artifacts.read_manifest(published.digest)
    await client.artifacts.pull(content, tmp_path / "here")
    assert manifest.find_damage(tmp_path / "here", content) is None
    assert (tmp_path / "here" / "run.sh").stat().st_mode & 0o111
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["empty", "model", "readme", "run.sh"]


async def test_what_is_here_and_right_is_not_fetched_again(
    client: RelayClient, service: Breaking, tmp_path: Path
) -> None:
    write_files(tmp_path / "out", a=b"one", b=b"two")
    content = await publish(client, tmp_path / "out")
    write_files(tmp_path / "here", a=b"one", b=b"TWO")
    service.asked.clear()
    await client.artifacts.pull(content, tmp_path / "here")
    assert len(service.asked) == 1
    assert (tmp_path / "here" / "b").read_bytes() == b"two"


async def test_a_damaged_blob_is_refused_and_leaves_nothing(
    client: RelayClient, service: Breaking, tmp_path: Path
) -> None:
    """F16: what does not match its digest is never put in place."""
    write_files(tmp_path / "out", a=noise(1 << 20))
    content = await publish(client, tmp_path / "out")
    [stored] = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.stat().st_size == 1 << 20]
    stored.chmod(0o644)
    stored.write_bytes(noise(1 << 20, seed=9))
    with pytest.raises(PullFailed, match="arrived damaged"):
        await client.artifacts.pull(content, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []
    await publish(client, tmp_path / "out")
    await client.artifacts.pull(content, tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == noise(1 << 20), "the next upload has repaired it"


async def test_what_the_way_has_damaged_is_fetched_again(
    client: RelayClient, service: Breaking, tmp_path: Path
) -> None:
    write_files(tmp_path / "out", a=noise(3 << 20))
    content = await publish(client, tmp_path / "out")
    service.flips = 1
    assert await client.artifacts.read_manifest(content.digest) == content
    service.flips = 1
    done: list[int] = []
    await client.artifacts.pull(content, tmp_path / "here", done.append)
    assert manifest.find_damage(tmp_path / "here", content) is None and sum(done) == content.size
    assert not list((tmp_path / "store" / "damaged").iterdir())


async def test_what_the_store_does_not_have_is_said(client: RelayClient, tmp_path: Path) -> None:
    with pytest.raises(errors.BlobUnknown):
        await client.artifacts.read_manifest(manifest.digest_bytes(b"never stored"))
