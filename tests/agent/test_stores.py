"""`relay://` over a real line: resumable, verified, only what is missing."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.coordinator_client import Contact, Coordinator
from agent.stores.blobs import BlobClient
from agent.stores.input_cache import InputCache
from agent.stores.relay import RelayStore
from relay.errors import DigestMismatch
from relay.v1 import runs_pb2
from storage.base import DamagedCopy, FolderKey
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, describe_folder, digest_bytes
from tests.agent.fake_coordinator import FakeCoordinator
from tests.proxy import Proxy

PLACE = FolderKey(run="r", framework="hf", attempt=1, lease="0" * 32, step=4)


@asynccontextmanager
async def blobs_at(address: str) -> AsyncIterator[tuple[BlobClient, Contact]]:
    coordinator = Coordinator(address, keepalive=0.5)
    contact = Contact(asyncio.get_running_loop().time)
    async with coordinator.dial() as channel:
        yield BlobClient(coordinator, channel, contact), contact


def folder(path: Path) -> Manifest:
    (path / "deep").mkdir(parents=True)
    (path / "a.bin").write_bytes(os.urandom(100_000))
    (path / "deep/b.sh").write_bytes(b"#!/bin/sh\n")
    (path / "deep/b.sh").chmod(0o755)
    (path / "empty").touch()
    manifest = describe_folder(path, step=4)
    (path / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return manifest


async def test_a_folder_there_and_back(fake: FakeCoordinator, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    async with blobs_at(fake.address) as (blobs, _):
        store = RelayStore(blobs)
        uri = f"relay://{manifest.digest}"
        assert not await store.has(uri, manifest.digest)
        assert await store.put(PLACE, manifest, lambda file: tmp_path / "from" / file.path) == uri
        assert await store.has(uri, manifest.digest)
        assert await store.fetch(uri, manifest.digest, tmp_path / "to") == manifest
    assert describe_folder(tmp_path / "to", step=4) == manifest


async def test_a_line_that_breaks_costs_only_time(fake: FakeCoordinator, tmp_path: Path) -> None:
    """F11."""
    manifest = folder(tmp_path / "from")
    async with Proxy([fake.address]) as proxy, blobs_at(proxy.address) as (blobs, contact):
        proxy.bandwidth(200_000)
        putting = asyncio.create_task(
            RelayStore(blobs).put(PLACE, manifest, lambda file: tmp_path / "from" / file.path)
        )
        await proxy.until_accepted(1)
        proxy.cut()
        proxy.heal()
        while not putting.done():
            contact.record_reply()
            await fake.wait_for_anything()
        await putting
    assert set(fake.folder(manifest.digest)) == {"a.bin", "deep/b.sh", "empty"}


async def test_an_upload_whose_beginning_has_gone_begins_anew(fake: FakeCoordinator) -> None:
    """Another upload of the same bytes became whole, or was forgotten, after the store was asked."""
    data = os.urandom(5000)
    digest = digest_bytes(data)
    fake.partials[digest] = 5000
    async with blobs_at(fake.address) as (blobs, contact):
        putting = asyncio.create_task(blobs.put(data, digest))
        while not putting.done():
            contact.record_reply()
            await asyncio.sleep(0)
        await putting
    assert fake.blobs[digest] == data


async def test_damage_in_the_store_is_found_and_nothing_of_it_kept(fake: FakeCoordinator, tmp_path: Path) -> None:
    """F16."""
    digest = fake.put(b"whole")
    fake.blobs[digest] = b"wh0le"
    async with blobs_at(fake.address) as (blobs, _):
        with pytest.raises(DamagedCopy):
            await blobs.get(digest, tmp_path / "x")
        assert digest in await blobs.find_missing([digest]), "so that the next upload repairs it"
        with pytest.raises(DamagedCopy):
            await blobs.get(digest_bytes(b"never there"), tmp_path / "y")
    assert not {"x", "y"} & set(await asyncio.to_thread(os.listdir, tmp_path))


async def test_a_download_goes_on_where_it_broke_off(fake: FakeCoordinator, tmp_path: Path) -> None:
    data = os.urandom(5000)
    digest = fake.put(data)
    (tmp_path / "x.part").write_bytes(data[:3000])
    async with blobs_at(fake.address) as (blobs, _):
        await blobs.get(digest, tmp_path / "x", executable=True)
    assert (tmp_path / "x").read_bytes() == data and os.access(tmp_path / "x", os.X_OK)


async def test_what_an_earlier_download_left_wrong_is_fetched_again(fake: FakeCoordinator, tmp_path: Path) -> None:
    digest = fake.put(data := os.urandom(5000))
    (tmp_path / "x.part").write_bytes(bytes(3000))
    async with blobs_at(fake.address) as (blobs, _):
        await blobs.get(digest, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


async def test_a_file_that_changed_is_not_stored_under_its_old_name(fake: FakeCoordinator, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"new")
    async with blobs_at(fake.address) as (blobs, _):
        with pytest.raises(DigestMismatch):
            await blobs.put(tmp_path / "x", digest_bytes(b"old"))


async def test_inputs_are_cached_verified_and_bounded(fake: FakeCoordinator, tmp_path: Path) -> None:
    first, second = fake.put(b"a" * 600), fake.put(b"b" * 600)
    cache = InputCache(tmp_path / "cache", limit=1000)
    async with blobs_at(fake.address) as (blobs, _):
        await cache.place_inputs(blobs, [runs_pb2.Input(path="in/a", digest=first)], tmp_path / "one")
        del fake.blobs[first]
        await cache.place_inputs(blobs, [runs_pb2.Input(path="a", digest=first)], tmp_path / "two")
        assert (tmp_path / "two/a").read_bytes() == b"a" * 600
        await cache.place_inputs(blobs, [runs_pb2.Input(path="b", digest=second)], tmp_path / "three")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [second.removeprefix("sha256:")]
        (tmp_path / "cache" / second.removeprefix("sha256:")).write_bytes(b"rotten")
        await cache.place_inputs(blobs, [runs_pb2.Input(path="b", digest=second)], tmp_path / "four")
        assert (tmp_path / "four/b").read_bytes() == b"b" * 600
        with pytest.raises(ManifestError):  # R7
            await cache.place_inputs(blobs, [runs_pb2.Input(path="../b", digest=second)], tmp_path / "five")
