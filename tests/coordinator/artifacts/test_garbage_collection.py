"""What nothing names goes; what is named, new, or asked for in any moment of it stays."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from coordinator.artifacts.folder import FolderArtifacts
from coordinator.artifacts.garbage_collection import Collector, find_missing
from storage.manifest import Manifest, ManifestFile, digest_bytes

LONG_AGO = 1_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path / "store", limit=1 << 30)


def put(store: FolderArtifacts, data: bytes) -> str:
    digest = digest_bytes(data)
    if not store.stat(digest).complete:
        with store.upload(digest, len(data), 0) as upload:
            upload.write(data)
            upload.finish()
    return digest


def put_folder(store: FolderArtifacts, *contents: bytes) -> str:
    files = tuple(ManifestFile(f"{i}.bin", len(data), put(store, data)) for i, data in enumerate(contents))
    return put(store, Manifest(files).to_bytes())


def age(root: Path, digests: Iterable[str] | None = None) -> None:
    """Make these blobs (or all) look as if they had not been asked for in a long time."""
    names = None if digests is None else {digest.removeprefix("sha256:") for digest in digests}
    for path in (root / "blobs").glob("??/*"):
        if names is None or path.name in names:
            os.utime(path, (LONG_AGO, LONG_AGO))


def blobs(root: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (root / "blobs").glob("??/*")}


def test_what_is_named_directly_or_by_a_manifest_stays_and_the_rest_goes(
    store: FolderArtifacts, tmp_path: Path
) -> None:
    kept, gone = put_folder(store, b"shared", b"kept"), put_folder(store, b"shared", b"gone")
    data, young = put(store, b"an input"), put(store, b"young")
    age(tmp_path / "store", blobs(tmp_path / "store") - {young})
    swept = Collector(store).collect([kept], [data], time.time() - 60)
    assert (swept.blobs, swept.left) == (2, 5)  # a manifest and a file of its own
    assert blobs(tmp_path / "store") == {kept, data, young, digest_bytes(b"shared"), digest_bytes(b"kept")}
    assert find_missing(store, kept) == [] and find_missing(store, gone) == [gone]
    assert list((tmp_path / "store" / "swept").iterdir()) == []


def test_whoever_is_told_that_it_is_there_keeps_it(store: FolderArtifacts, tmp_path: Path) -> None:
    digest = put(store, b"asked for")
    for ask in (lambda: store.stat(digest).complete, lambda: store.read(digest, 100)):
        age(tmp_path / "store")
        assert ask()
        assert Collector(store).collect([], [], time.time() - 60).blobs == 0


def test_an_upload_that_only_finished_now_is_new(store: FolderArtifacts, tmp_path: Path) -> None:
    data = b"most of it came long ago"
    with store.upload(digest_bytes(data), len(data), 0) as upload:
        upload.write(data)
    (partial,) = (tmp_path / "store" / "partial").iterdir()
    os.utime(partial, (LONG_AGO, LONG_AGO))
    with store.upload(digest_bytes(data), len(data), len(data)) as upload:
        upload.finish()
    assert Collector(store).collect([], [], time.time() - 60).blobs == 0


@pytest.mark.parametrize("moment", ["before its name goes", "after its name went"])
def test_asked_for_in_the_middle_of_a_sweep(
    store: FolderArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Either the blob is found afterwards, or whoever asked learned that it does not exist."""
    digest, rename = put(store, b"contended"), os.rename
    answers: list[bool] = []
    age(tmp_path / "store")

    def meddling(source: Path, target: Path) -> None:
        if moment == "before its name goes" and not answers:
            answers.append(store.stat(digest).complete)
        rename(source, target)
        if moment == "after its name went" and not answers:
            answers.append(store.stat(digest).complete)

    monkeypatch.setattr("coordinator.artifacts.folder.os.rename", meddling)
    swept = Collector(store).collect([], [], time.time() - 60)
    there = moment == "before its name goes"
    assert (answers, swept.blobs, store.stat(digest).complete) == ([there], int(not there), there)


def test_a_sweep_that_was_killed_leaves_nothing_aside(store: FolderArtifacts, tmp_path: Path) -> None:
    digest = put(store, b"taken aside")
    name = digest.removeprefix("sha256:")
    path = tmp_path / "store" / "blobs" / name[:2] / name
    path.rename(tmp_path / "store" / "swept" / f"{name}.1234")
    assert not store.stat(digest).complete
    assert Collector(store).collect([digest], [], time.time() - 60).blobs == 0
    assert store.stat(digest).complete


def test_a_manifest_that_cannot_be_read_just_now_stops_the_sweep(
    store: FolderArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put_folder(store, b"its file")
    age(tmp_path / "store")

    def broken(*_: object) -> bytes:
        raise PermissionError("the volume is away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "read", broken)
        with pytest.raises(PermissionError):
            Collector(store).collect([kept], [], time.time() - 60)
    assert find_missing(store, kept) == []


def test_the_store_of_another_deployment_is_not_swept(store: FolderArtifacts) -> None:
    assert store.claim("one") and store.claim("one") and not store.claim("another")


def test_uploads_race_a_sweeper(store: FolderArtifacts, tmp_path: Path) -> None:
    """A blob that was put and reported as stored is stored, however often a sweeper that names nothing runs."""
    contents = [bytes([seed]) * 1000 for seed in range(16)]
    stop, lost = threading.Event(), []

    def sweep() -> None:
        while not stop.is_set():
            Collector(FolderArtifacts(tmp_path / "store", limit=1 << 30)).collect([], [], LONG_AGO + 1)

    def publish(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(150):
            data = dice.choice(contents)
            name = hashlib.sha256(data).hexdigest()
            with contextlib.suppress(FileNotFoundError):
                os.utime(tmp_path / "store" / "blobs" / name[:2] / name, (LONG_AGO, LONG_AGO))  # as if it were old
            digest = put(store, data)
            if store.stat(digest).complete:
                continue
            lost.append(digest)  # it was aged again by another publisher and went: put again what is said to be missing
            put(store, data)

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in range(4)]
    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    sweeper.join()
    for data in contents:
        assert store.read(put(store, data), 2000) == data
    assert not list((tmp_path / "store" / "partial").iterdir())
