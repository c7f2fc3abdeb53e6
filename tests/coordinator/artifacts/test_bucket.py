"""The coordinator's own store in a real S3, alone and through gRPC, shared by replicas."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import obstore
import pytest

from coordinator.artifacts.bucket import BucketArtifacts, open_bucket
from coordinator.artifacts.garbage_collection import Collector, find_missing
from coordinator.config import Config
from relay.errors import BlobTooLarge, BlobUnknown, DigestMismatch, OffsetGap, StoreFull
from relay.settings import SettingsError
from relay.v1 import artifacts_pb2 as pb
from storage.base import StoreUnavailable
from storage.manifest import Manifest, ManifestFile, digest_bytes
from tests.conftest import serving
from tests.seaweed import environment

MIB = 1024 * 1024
GRACE = 3600.0
FUTURE = 1e11  #: whatever was touched until then is old


@pytest.fixture
def url(s3: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    return f"s3://relay/{request.node.name}-{random.getrandbits(64):x}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> BucketArtifacts:
    return made(url, tmp_path)


def made(url: str, folder: Path, *, grace: float = GRACE, limit: int = 1 << 30) -> BucketArtifacts:
    return BucketArtifacts(url, folder / "scratch", limit=limit, grace=grace)


def put(store: BucketArtifacts, data: bytes) -> str:
    digest = digest_bytes(data)
    if not store.stat(digest).complete:
        with store.upload(digest, len(data), 0) as upload:
            upload.write(data)
            upload.finish()
    return digest


def keys(store: BucketArtifacts, prefix: str = "") -> list[str]:
    return sorted(meta["path"] for batch in obstore.list(open_bucket(store.url), prefix or None) for meta in batch)


def test_there_and_back_and_only_once(store: BucketArtifacts, url: str, tmp_path: Path) -> None:
    for data in (b"", b"x", random.Random(1).randbytes(20 * MIB + 7)):
        digest = put(store, data)
        assert put(made(url, tmp_path / "other"), data) == digest  # another replica has it too
        assert store.stat(digest).complete and store.read(digest, 1 << 30) == data
        with store.open_blob(digest) as blob:
            assert blob.size == len(data) and blob.piece(len(data)) == b""
            assert b"".join(blob.piece(at) for at in range(0, len(data), MIB)) == data
    unknown = digest_bytes(b"nobody has this")
    assert [stat.complete for stat in store.stats([digest, unknown, digest])] == [True, False, True]
    assert len(keys(store, "blobs/")) == 3 and not list((tmp_path / "scratch" / "partial").iterdir())
    with pytest.raises(BlobUnknown), store.open_blob(digest_bytes(b"nobody has this")):
        pass
    with pytest.raises(BlobTooLarge):
        store.read(digest, 10)


def test_an_upload_that_broke_off_goes_on_here_and_begins_anew_elsewhere(
    store: BucketArtifacts, url: str, tmp_path: Path
) -> None:
    data = random.Random(2).randbytes(3 * MIB)
    with store.upload(digest_bytes(data), len(data), 0) as upload:
        upload.write(data[:MIB])
    assert not keys(store)  # nothing of it can be seen
    stat = store.stat(digest_bytes(data))
    assert (stat.complete, stat.offset) == (False, MIB)
    other = made(url, tmp_path / "other")
    assert other.stat(digest_bytes(data)).offset == 0
    with pytest.raises(OffsetGap), other.upload(digest_bytes(data), len(data), MIB):
        pass
    with store.upload(digest_bytes(data), len(data), MIB) as upload:
        upload.write(data[MIB:])
        upload.finish()
    assert other.read(digest_bytes(data), 1 << 30) == data


def test_other_bytes_are_refused_and_never_put(store: BucketArtifacts) -> None:
    with pytest.raises(DigestMismatch), store.upload(digest_bytes(b"those"), 5, 0) as upload:
        upload.write(b"these")
        upload.finish()
    assert not keys(store)


def test_the_cap_counts_what_others_put(url: str, tmp_path: Path) -> None:
    put(made(url, tmp_path / "other"), b"a" * 60)
    store = made(url, tmp_path, limit=100)
    with pytest.raises(StoreFull), store.upload(digest_bytes(b"b" * 60), 60, 0):
        pass


def test_a_damaged_blob_is_set_aside_when_asked_and_the_next_upload_repairs_it(store: BucketArtifacts) -> None:
    """F16."""
    digest = put(store, b"sound")
    (key,) = keys(store, "blobs/")
    obstore.put(open_bucket(store.url), key, b"sounD")
    with pytest.raises(DigestMismatch):
        list(store.check(digest))
    assert not store.stat(digest).complete and len(keys(store, "damaged/")) == 1
    assert list(made_whole(store, digest).check(digest)) == []


def made_whole(store: BucketArtifacts, digest: str) -> BucketArtifacts:
    put(store, b"sound")
    assert store.stat(digest).complete
    return store


def test_what_is_named_stays_and_the_rest_goes_once_it_is_old(store: BucketArtifacts) -> None:
    files = (ManifestFile("w.bin", 4, put(store, b"kept")),)
    kept, gone = put(store, Manifest(files).to_bytes()), put(store, b"gone")
    assert Collector(store).collect([kept], [], 0.0).blobs == 0
    swept = Collector(store).collect([kept], [], FUTURE)
    assert (swept.blobs, swept.size, swept.left) == (1, 4, 2)
    assert find_missing(store, kept) == [] and not store.stat(gone).complete
    assert not keys(store, "doomed/")


def test_two_that_brought_the_same_leave_one_in_the_end(store: BucketArtifacts, url: str, tmp_path: Path) -> None:
    data, other = b"the same", made(url, tmp_path / "other")
    with store.upload(digest_bytes(data), len(data), 0) as one, other.upload(digest_bytes(data), len(data), 0) as two:
        for upload in (one, two):
            upload.write(data)
            upload.finish()
    assert len(keys(store, "blobs/")) == 2
    assert Collector(store).collect([], [digest_bytes(data)], FUTURE).blobs == 1
    assert store.read(digest_bytes(data), 100) == data


def test_whoever_is_told_that_an_old_one_is_there_keeps_it(url: str, tmp_path: Path) -> None:
    store = made(url, tmp_path, grace=0.0)  # everything is old at once
    digest = put(store, b"asked for")
    (before,) = [meta["last_modified"].timestamp() for batch in obstore.list(open_bucket(url)) for meta in batch]
    assert store.stat(digest).complete and len(keys(store, "touched/")) == 1
    touched = obstore.head(open_bucket(url), keys(store, "touched/")[0])["last_modified"].timestamp()
    assert Collector(store).collect([], [], touched - 1e-3).blobs == 0
    assert before <= touched and store.stat(digest).complete


@pytest.mark.parametrize("asked", [True, False])
def test_asked_for_in_the_middle_of_a_sweep(url: str, tmp_path: Path, asked: bool) -> None:
    """Whoever asks once it is doomed learns that it does not exist, and what is put then is another object."""
    store = made(url, tmp_path, grace=0.0)
    digest = put(store, b"contended")
    delete = obstore.delete
    answers: list[bool] = []

    def meddling(bucket: object, path: str) -> None:
        if asked and path.startswith("blobs/") and not answers:
            answers.append(store.stat(digest).complete)
            put(store, b"contended")
        delete(bucket, path)  # type: ignore[arg-type]

    with patch.object(obstore, "delete", meddling):
        assert Collector(store).collect([], [], FUTURE).blobs == 1
    assert answers == ([False] if asked else [])
    assert store.stat(digest).complete == asked and not keys(store, "doomed/")


def test_the_mark_of_a_sweep_that_was_killed_dooms_its_object_and_no_other(url: str, tmp_path: Path) -> None:
    store = made(url, tmp_path, grace=0.0)
    digest = put(store, b"half swept")
    (key,) = keys(store, "blobs/")
    obstore.put(open_bucket(url), f"doomed/{key.rpartition('/')[2]}", b"doomed")
    assert not store.stat(digest).complete
    put(store, b"half swept")
    assert Collector(store).collect([], [digest], FUTURE).blobs == 1  # the doomed one
    assert store.read(digest, 100) == b"half swept" and key not in keys(store, "blobs/")


def test_uploads_race_a_sweeper(url: str, tmp_path: Path) -> None:
    """A blob that was reported as stored is stored: each publisher puts, asks, and then reads."""
    contents = [bytes([seed]) * 100 for seed in range(4)]
    stop, lost = threading.Event(), list[str]()

    def sweep() -> None:
        sweeper = Collector(made(url, tmp_path / "sweeper", grace=2.0))
        while not stop.is_set():
            sweeper.collect([], [], time.time() - 2.0)

    def publish(seed: int) -> None:
        dice, store = random.Random(seed), made(url, tmp_path / str(seed), grace=2.0)
        for _ in range(40):
            digest = put(store, dice.choice(contents))
            if store.stat(digest).complete and missing_bytes(store, digest):
                lost.append(digest)

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in range(3)]
    sweeper = threading.Thread(target=sweep)
    for thread in (sweeper, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    sweeper.join()
    assert lost == []


def missing_bytes(store: BucketArtifacts, digest: str) -> bool:
    try:
        return len(store.read(digest, 1000)) != 100
    except (BlobUnknown, FileNotFoundError):
        return True


def test_the_store_of_another_deployment_is_not_swept(store: BucketArtifacts) -> None:
    assert store.claim("one") and store.claim("one") and not store.claim("another")


def test_a_bucket_that_does_not_answer_is_away(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("coordinator.artifacts.bucket.RETRIES", 0)
    with pytest.raises(StoreUnavailable, match="bucket"):
        made(url, tmp_path).stat(digest_bytes(b"x"))


@pytest.mark.parametrize("wrong", ["/mnt/x", "s3://", "s3://key:secret@bucket", "s3://b?token=x", "ftp://b"])
def test_what_names_no_bucket_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match="s3://BUCKET/PREFIX") as refused:
        Config(artifact_store=wrong)
    assert "secret" not in str(refused.value)


async def test_replicas_share_a_bucket(coordinator_config: Config, url: str, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(2 * MIB)
    config = replace(coordinator_config, artifact_store=url, artifact_dir=tmp_path / "one")
    other = replace(config, data_dir=tmp_path / "other", artifact_dir=tmp_path / "two")
    async with serving(config) as one, serving(other) as two:
        header = pb.PutBlobHeader(digest=digest_bytes(data), size=len(data))
        chunks = [pb.PutBlobRequest(chunk=data[at : at + MIB]) for at in range(0, len(data), MIB)]
        await one.artifacts.PutBlob(iter([pb.PutBlobRequest(header=header), *chunks]))
        got = two.artifacts.GetBlob(pb.GetBlobRequest(digest=digest_bytes(data), verify=True))
        assert b"".join([answer.chunk async for answer in got]) == data
