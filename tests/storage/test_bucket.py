"""Buckets over a line that fails in every way, at every request, and what a bucket must refuse (F11, F22)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import TypeVar
from uuid import uuid4

import pytest

from storage.base import DamagedCopy, StoreRefused, StoreUnavailable
from storage.bucket import BucketStore
from storage.manifest import MANIFEST_FILE, Manifest, describe_folder
from tests.seaweed import BUCKET, environment
from tests.storage.contents import StoreContents, folder, folder_key, locate_in
from tests.storage.weather import Fault, Weather, weather

T = TypeVar("T")
LARGE = 9 * 1024 * 1024  #: two parts, two pieces
TRIES = 100


@pytest.fixture
async def sky(s3: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Weather]:
    """The line to the bucket."""
    async with weather(s3) as sky:
        for name, value in environment(sky.address).items():
            monkeypatch.setenv(name, value)
        yield sky


def impatient(base: str) -> BucketStore:
    return BucketStore("s3", base, request_timeout=1.0, retry_for=1.0)


async def outlast(work: Callable[[], Awaitable[T]]) -> T:
    """As an agent does, without its pauses."""
    for _ in range(TRIES):
        try:
            return await work()
        except StoreUnavailable:
            continue
    raise AssertionError("it never came back")


@pytest.mark.slow
@pytest.mark.rotating(1)
@pytest.mark.parametrize("fault", Fault)
async def test_f22_any_request_of_a_put_may_fail(fault: Fault, s3: str, sky: Weather, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from", big=LARGE)
    number = 0
    while sky.requests >= number:
        base = f"s3://{BUCKET}/{uuid4().hex}"
        sky.at(number, fault)
        store = impatient(base)
        uri = await outlast(lambda store=store: store.put(folder_key(), manifest, locate_in(tmp_path / "from")))  # type: ignore[misc]
        kept = StoreContents(base, s3)
        assert list(kept.find_differences([(uri, manifest.digest)])) == [] and kept.leftovers() == []
        assert kept.read("index.jsonl").count(b"\n") == 1
        number += 1
    assert number > 10, sky.lines


@pytest.mark.slow
@pytest.mark.rotating(1)
@pytest.mark.parametrize("fault", Fault)
async def test_f22_any_request_of_a_fetch_may_fail(fault: Fault, sky: Weather, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from", big=LARGE)
    base = f"s3://{BUCKET}/{uuid4().hex}"
    uri = await outlast(lambda: impatient(base).put(folder_key(), manifest, locate_in(tmp_path / "from")))
    number = 0
    sky.requests = 1
    while sky.requests > number:
        sky.at(number, fault)
        to = tmp_path / f"to-{number}"
        await outlast(lambda to=to: impatient(base).fetch(uri, manifest.digest, to))  # type: ignore[misc]
        assert describe_folder(to, step=1) == manifest
        number += 1
    assert number > 3, sky.lines


@pytest.mark.slow
@pytest.mark.rotating(1)
@pytest.mark.parametrize("seed", range(3))
async def test_f22_a_storm(seed: int, s3: str, sky: Weather, tmp_path: Path) -> None:
    """A third of all requests fail, of several runs at once; then every byte is looked at."""
    base = f"s3://{BUCKET}/{uuid4().hex}"
    sky.plan_faults(Random(seed), 0.3)

    async def publish(run: int) -> list[tuple[str, str]]:
        store, done = impatient(base), []
        for step in range(3):
            path = tmp_path / f"{run}-{step}"
            manifest = folder(path, step=step, big=100_000)
            here = folder_key(step, run=f"r{run}")
            uri = await outlast(lambda: store.put(here, manifest, locate_in(path)))  # noqa: B023
            await outlast(lambda: impatient(base).fetch(uri, manifest.digest, tmp_path / f"{run}-{step}-to"))  # noqa: B023
            done.append((uri, manifest.digest))
        return done

    registry = [entry for entries in await asyncio.gather(*map(publish, range(3))) for entry in entries]
    kept = StoreContents(base, s3)
    assert list(kept.find_differences(registry)) == [] and kept.leftovers() == []
    assert kept.read("index.jsonl").count(b"\n") == 9


async def test_f11_a_store_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment("127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    manifest, store = folder(tmp_path / "from"), impatient(f"s3://{BUCKET}/x")
    uri = store.uri_of(folder_key())
    for work in (
        store.put(folder_key(), manifest, locate_in(tmp_path / "from")),
        store.fetch(uri, manifest.digest, tmp_path / "to"),
        store.has(uri, manifest.digest),
        store.remove(uri),
    ):
        with pytest.raises(StoreUnavailable, match="s3://relay/x"):
            await work


async def test_no_such_bucket_is_no_matter_of_time(bucket: str, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    store = BucketStore("s3", "s3://not-a-bucket/x")
    with pytest.raises(StoreRefused, match=r"no such bucket|access is denied"):
        await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    with pytest.raises(StoreRefused, match="no such bucket"):
        await store.fetch(store.uri_of(folder_key()), manifest.digest, tmp_path / "to")


async def test_a_cancelled_upload_is_aborted(sky: Weather, s3: str, tmp_path: Path) -> None:
    manifest, base = folder(tmp_path / "from", big=40 * 1024 * 1024), f"s3://{BUCKET}/{uuid4().hex}"
    store, begun = BucketStore("s3", base), asyncio.Event()
    putting = asyncio.ensure_future(
        store.put(
            folder_key(), manifest, locate_in(tmp_path / "from"), lambda size: begun.set() if size > 1_000_000 else None
        )
    )
    await begun.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert not await store.has(store.uri_of(folder_key()), manifest.digest)
    assert not [name for name in StoreContents(base, s3).names() if name.endswith(("weights.bin", MANIFEST_FILE))]
    assert [line for line in sky.lines if line.startswith("DELETE") and "weights.bin?uploadId=" in line]


async def test_an_upload_goes_on_with_the_files_that_are_there_whole(sky: Weather, s3: str, tmp_path: Path) -> None:
    manifest: Manifest = folder(tmp_path / "from", files=11, big=1_000_000)
    base = f"s3://{BUCKET}/{uuid4().hex}"
    done: list[int] = []

    def enough(size: int) -> None:
        done.append(size)
        if sum(done) > 8_000_000:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await BucketStore("s3", base).put(folder_key(), manifest, locate_in(tmp_path / "from"), enough)
    there = [name for name, size in StoreContents(base, s3).names().items() if size == 1_000_000]
    assert there
    sky.lines.clear()
    await BucketStore("s3", base).put(folder_key(), manifest, locate_in(tmp_path / "from"))
    sent = [line for line in sky.lines if line.startswith("PUT")]
    assert sent and not [line for line in sent for name in there if name in line]


async def test_the_second_folder_sends_only_what_changed(sky: Weather, tmp_path: Path) -> None:
    """One file in twenty; the backend copies the others."""
    first = folder(tmp_path / "1", files=19, big=200_000)
    base = f"s3://{BUCKET}/{uuid4().hex}"
    await BucketStore("s3", base).put(folder_key(1), first, locate_in(tmp_path / "1"))
    (tmp_path / "1/shard-03.bin").write_bytes(b"changed" * 10_000)
    second = describe_folder(tmp_path / "1", step=2)
    sky.uploaded = 0
    await BucketStore("s3", base).put(folder_key(2), second, locate_in(tmp_path / "1"))
    assert 70_000 < sky.uploaded < 90_000


async def test_no_secret_is_in_any_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """R6."""
    for name, value in environment("127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-a-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-of-an-id")
    with pytest.raises(StoreUnavailable) as away:
        await impatient("s3://relay/x").has("s3://relay/x/y", "sha256:" + "0" * 64)
    assert "canary" not in str(away.value) and "canary" not in repr(impatient("s3://relay/x"))


async def test_an_object_longer_than_any_manifest_is_not_read(bucket: str, s3: str, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    store = BucketStore("s3", bucket)
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    StoreContents(bucket, s3).write(f"{StoreContents(bucket, s3).below(uri)}/manifest.json", bytes(65 * 1024 * 1024))
    with pytest.raises(DamagedCopy, match="more than any manifest"):
        await store.fetch(uri, manifest.digest, tmp_path / "to")
