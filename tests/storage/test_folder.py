"""A folder that hosts share: races, full disks, shares that are not mounted, what dead writers leave."""

import asyncio
import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.base import Store, StoreRefused, StoreUnavailable
from storage.folder import FolderStore, scratch_folder
from storage.manifest import MANIFEST_FILE, describe_folder
from tests.storage.contents import StoreContents, folder, folder_key, locate_in


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond `room` bytes, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_two_hosts_publish_the_same_at_one_place(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    hosts = [FolderStore(share.as_uri(), writer=f"host-{number}") for number in range(8)]
    uris = await asyncio.gather(*(host.put(folder_key(), manifest, locate_in(tmp_path / "from")) for host in hosts))
    assert len(set(uris)) == 1
    kept = StoreContents(share.as_uri())
    assert list(kept.find_differences([(uris[0], manifest.digest)])) == [] and kept.leftovers() == []
    assert kept.read("index.jsonl").count(b"\n") == 1


async def test_of_two_contents_at_one_place_one_is_refused(share: Path, tmp_path: Path) -> None:
    """S4."""
    manifests = [folder(tmp_path / f"{number}") for number in range(2)]
    answers = await asyncio.gather(
        *(
            FolderStore(share.as_uri(), writer=f"{number}").put(
                folder_key(), manifest, locate_in(tmp_path / f"{number}")
            )
            for number, manifest in enumerate(manifests)
        ),
        return_exceptions=True,
    )
    (winner,) = (number for number, answer in enumerate(answers) if isinstance(answer, str))
    assert isinstance(answers[1 - winner], StoreRefused)
    kept = StoreContents(share.as_uri())
    assert list(kept.find_differences([(str(answers[winner]), manifests[winner].digest)])) == []
    assert kept.leftovers() == []


async def test_many_writers_share_one_index(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    stores = [FolderStore(share.as_uri(), writer=f"host-{number}") for number in range(10)]
    await asyncio.gather(
        *(store.put(folder_key(number), manifest, locate_in(tmp_path / "from")) for number, store in enumerate(stores))
    )
    lines = [json.loads(line) for line in (share / "index.jsonl").read_bytes().splitlines()]
    assert sorted(line["step"] for line in lines) == list(range(10))


async def test_unchanged_files_are_linked(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    store = FolderStore(share.as_uri())
    first = await store.put(folder_key(1), manifest, locate_in(tmp_path / "from"))
    second = await store.put(folder_key(2), describe_folder(tmp_path / "from", step=2), locate_in(tmp_path / "from"))
    paths = [Path(uri.removeprefix("file://"), "weights.bin") for uri in (first, second)]
    assert paths[0].samefile(paths[1])
    await store.remove(first)
    assert await store.has(second, describe_folder(tmp_path / "from", step=2).digest)


async def test_a_share_that_is_not_mounted_is_away(tmp_path: Path) -> None:
    """Otherwise checkpoints would land on the host's own disk, and resumes would take them for gone."""
    manifest = folder(tmp_path / "from")
    store = FolderStore((tmp_path / "nowhere").as_uri())
    with pytest.raises(StoreUnavailable, match="mount it, or make the folder"):
        await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    with pytest.raises(StoreUnavailable, match="is it mounted"):
        await store.fetch(store.uri_of(folder_key()), manifest.digest, tmp_path / "to")
    assert not (tmp_path / "nowhere").exists()


async def test_a_place_that_cannot_be_written_is_refused(share: Path, tmp_path: Path) -> None:
    (share / "r").write_bytes(b"somebody's file")
    manifest = folder(tmp_path / "from")
    with pytest.raises(StoreRefused, match="must be writable by the agent's user"):
        await FolderStore(share.as_uri()).put(folder_key(), manifest, locate_in(tmp_path / "from"))
    assert (share / "r").read_bytes() == b"somebody's file"


async def test_f15_a_share_that_is_full_is_away_until_there_is_room(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from", big=600_000)
    store = FolderStore(share.as_uri())
    with full_disk(500_000), pytest.raises(StoreUnavailable, match="File too large"):
        await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    assert StoreContents(share.as_uri()).names() == {}
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    assert list(StoreContents(share.as_uri()).find_differences([(uri, manifest.digest)])) == []


async def test_f15_a_host_that_is_full_says_so_and_goes_on_when_there_is_room(store: Store, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from", big=600_000)
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    with full_disk(500_000), pytest.raises(OSError, match="File too large"):
        await store.fetch(uri, manifest.digest, tmp_path / "to")
    assert not (tmp_path / "to" / MANIFEST_FILE).exists() and not (tmp_path / "to/weights.bin").exists()
    await store.fetch(uri, manifest.digest, tmp_path / "to")
    assert describe_folder(tmp_path / "to", step=1) == manifest


async def test_leftovers_of_dead_writers_go_and_those_of_others_stay(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    for room in ("a-dead", "b-dead", "ab-dead"):
        (share / ".relay" / room / "folder").mkdir(parents=True)
        (share / ".relay" / room / "folder/half").write_bytes(b"half")
    with scratch_folder(share, "a") as alive:
        (alive / "in the making").touch()
        await FolderStore(share.as_uri(), writer="a").put(folder_key(), manifest, locate_in(tmp_path / "from"))
        left = {name for name in os.listdir(share / ".relay") if not alive.is_relative_to(share / ".relay" / name)}
        assert left == {"b-dead", "ab-dead"}
        assert (alive / "in the making").exists()


async def test_a_base_that_is_empty_has_nothing_and_one_that_is_not_there_is_away(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    store = FolderStore(share.as_uri())
    assert not await store.has(store.uri_of(folder_key()), manifest.digest)
    gone = FolderStore((share / "gone").as_uri())
    with pytest.raises(StoreUnavailable, match="mount it, or make the folder"):
        await gone.has(gone.uri_of(folder_key()), manifest.digest)


async def test_a_half_removed_folder_makes_room(share: Path, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    store = FolderStore(share.as_uri())
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    (Path(uri.removeprefix("file://")) / MANIFEST_FILE).unlink()
    assert not await store.has(uri, manifest.digest)
    assert await store.put(folder_key(), manifest, locate_in(tmp_path / "from")) == uri
    assert await store.has(uri, manifest.digest) and StoreContents(share.as_uri()).leftovers() == []


async def test_names_with_blanks_are_quoted_in_the_uri(tmp_path: Path) -> None:
    (tmp_path / "a share").mkdir()
    manifest = folder(tmp_path / "from")
    store = FolderStore((tmp_path / "a share").as_uri())
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    assert " " not in uri
    await FolderStore().fetch(uri, manifest.digest, tmp_path / "to")
    assert describe_folder(tmp_path / "to", step=1) == manifest
