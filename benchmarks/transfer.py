"""One transfer, in a process of its own: `python -m benchmarks.transfer WAY KIND WHERE SOURCE TARGET STEP`

WAY is put or fetch through a store, or copy or recopy: the same files, digests and syncs with nothing else (for a
bucket: its own client). It prints seconds, bytes sent, and how far memory rose above that of the idle process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import obstore
from obstore.store import S3Store

from agent.coordinator_client import Contact, Coordinator
from agent.stores.blobs import BlobClient
from agent.stores.relay import RelayStore
from storage.base import FolderKey, Store
from storage.exit import end_process
from storage.manifest import MANIFEST_FILE, Manifest, ManifestFile, hash_file
from storage.stores import open_store

CHUNK = 4 * 1024 * 1024
AT_ONCE = 4
PART = 8 * 1024 * 1024


def copy(source: Path, target: Path, manifest: Manifest) -> None:
    """Files one by one: read, hashed, written, synced; then their folder."""
    target.mkdir(parents=True)
    for file in manifest.files:
        digest = hashlib.sha256()
        with (source / file.path).open("rb", 0) as read, (target / file.path).open("wb", 0) as write:
            while chunk := read.read(CHUNK):
                digest.update(chunk)
                write.write(chunk)
            os.fsync(write.fileno())
        assert f"sha256:{digest.hexdigest()}" == file.digest
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


async def client_copy(source: Path, prefix: str, manifest: Manifest, *, down: Path | None) -> None:
    """The bucket's own client, as many files at once as ours, with the same digests."""
    bucket = S3Store(os.environ["BENCH_BUCKET"], config={"checksum_algorithm": "SHA256"})
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(file: ManifestFile) -> None:
        async with gate:
            if down is None:
                assert (await asyncio.to_thread(hash_file, source / file.path))[0] == file.digest
                await obstore.put_async(
                    bucket, f"{prefix}/{file.path}", source / file.path, chunk_size=PART, max_concurrency=4
                )
            else:
                await _client_get(bucket, f"{prefix}/{file.path}", down / file.path, file)

    await asyncio.gather(*map(one, manifest.files))


async def _client_get(bucket: S3Store, key: str, path: Path, file: ManifestFile) -> None:
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", 0) as write:
        answer = await obstore.get_async(bucket, key)
        async for chunk in answer.stream(min_chunk_size=CHUNK):
            await asyncio.to_thread(digest.update, chunk)
            await asyncio.to_thread(write.write, chunk)
        await asyncio.to_thread(os.fsync, write.fileno())
    assert f"sha256:{digest.hexdigest()}" == file.digest


@asynccontextmanager
async def opened(kind: str, where: str) -> AsyncIterator[Store]:
    if kind != "relay":
        yield open_store(where)
        return
    coordinator = Coordinator(where)
    async with coordinator.dial() as channel:
        yield RelayStore(BlobClient(coordinator, channel, Contact(time.monotonic)))


async def transfer(way: str, kind: str, where: str, source: Path, target: Path, step: int) -> dict[str, float]:
    """Seconds, bytes sent, and bytes of memory above rest."""
    manifest = Manifest.from_bytes((source / MANIFEST_FILE).read_bytes())
    sent = 0

    def locate_file(file: ManifestFile) -> Path:
        nonlocal sent
        sent += file.size
        return source / file.path

    async with opened(kind, where) as store:
        rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began = time.perf_counter()
        place = FolderKey(run="bench", framework="hf", attempt=1, lease="0" * 32, step=step)
        if way == "put":
            await store.put(place, manifest, locate_file)
        elif way == "fetch":
            uri = await store.put(place, manifest, locate_file)  # there already: only its name
            began = time.perf_counter()
            await store.fetch(uri, manifest.digest, target)
        elif kind == "s3":
            down = target if way == "recopy" else None
            await client_copy(source, f"{where.split('/', 3)[3]}/plain", manifest, down=down)
        else:
            await asyncio.to_thread(copy, source, target, manifest)
        took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - rest
    return {"seconds": took, "sent": sent, "memory": peak}


if __name__ == "__main__":
    way, kind, where, source, target, step = sys.argv[1:]
    print(json.dumps(asyncio.run(transfer(way, kind, where, Path(source), Path(target), int(step)))))
    end_process(0)
