"""What every store does that needs no coordinator."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.base import DamagedCopy, RepairableStore, Store, StoreRefused
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, describe_folder
from storage.stores import open_store
from tests.storage.contents import StoreContents, folder, folder_key, locate_in

LARGE = 45 * 1024 * 1024  #: goes in several parts, and comes in more pieces than are asked for at once


@pytest.mark.parametrize("big", [300_000, LARGE])
async def test_a_folder_there_and_back(store: Store, kept: StoreContents, tmp_path: Path, big: int) -> None:
    manifest = folder(tmp_path / "from", big=big)
    done: list[int] = []
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"), done.append)
    assert uri == f"{kept.base}/r/checkpoints/0001-{'1' * 32}/step_00000001"
    assert sum(done) == manifest.size
    assert await store.has(uri, manifest.digest)
    done.clear()
    assert await store.fetch(uri, manifest.digest, tmp_path / "to", done.append) == manifest
    assert sum(done) == manifest.size
    assert describe_folder(tmp_path / "to", step=1) == manifest
    assert Manifest.from_bytes((tmp_path / "to" / MANIFEST_FILE).read_bytes()) == manifest
    assert kept.leftovers() == []


async def test_putting_the_same_again_is_harmless_and_other_content_is_refused(
    store: Store, kept: StoreContents, tmp_path: Path
) -> None:
    """S4."""
    manifest = folder(tmp_path / "from")
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    before = kept.names()
    assert await store.put(folder_key(), manifest, locate_in(tmp_path / "nothing-is-read")) == uri
    assert kept.names() == before
    other = folder(tmp_path / "other")
    with pytest.raises(StoreRefused, match="nothing is ever overwritten"):
        await store.put(folder_key(), other, locate_in(tmp_path / "other"))
    assert list(kept.find_differences([(uri, manifest.digest)])) == []


async def test_the_index_has_a_line_for_each_folder(store: Store, kept: StoreContents, tmp_path: Path) -> None:
    """C5."""
    kept.write("index.jsonl", b'{"half a line that a writer who d')
    first, second = folder(tmp_path / "1"), folder(tmp_path / "2", step=2)
    uris = [
        await store.put(folder_key(1), first, locate_in(tmp_path / "1")),
        await store.put(folder_key(2), second, locate_in(tmp_path / "2")),
        await store.put(folder_key(1), first, locate_in(tmp_path / "1")),
    ]
    lines = [json.loads(line) for line in kept.read("index.jsonl").splitlines()[1:]]
    assert [(line["step"], line["digest"], line["uri"]) for line in lines] == [
        (1, first.digest, uris[0]),
        (2, second.digest, uris[1]),
    ]
    assert lines[0]["run"] == "r" and lines[0]["attempt"] == 1 and lines[0]["size"] == first.size


async def test_a_fetch_goes_on_with_what_an_earlier_one_left(store: Store, kept: StoreContents, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from", big=LARGE)
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    done: list[int] = []
    await _until_cancelled(store, uri, manifest, tmp_path / "to")
    (part,) = (path for path in (tmp_path / "to").glob(".relay-part-*") if path.stat().st_size)
    left = part.stat().st_size
    assert 0 < left < LARGE
    await store.fetch(uri, manifest.digest, tmp_path / "to", done.append)
    assert left in done and describe_folder(tmp_path / "to", step=1) == manifest


async def test_what_an_earlier_fetch_left_wrong_is_fetched_again(store: Store, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from", big=LARGE)
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    await _until_cancelled(store, uri, manifest, tmp_path / "to")
    (part,) = (path for path in (tmp_path / "to").glob(".relay-part-*") if path.stat().st_size)
    part.write_bytes(bytes(part.stat().st_size))
    await store.fetch(uri, manifest.digest, tmp_path / "to")
    assert describe_folder(tmp_path / "to", step=1) == manifest


def _sizes_of_parts(folder: Path) -> Iterator[int]:
    for path in folder.glob(".relay-part-*"):
        with suppress(FileNotFoundError):  # complete meanwhile, and renamed
            yield path.stat().st_size


async def _until_cancelled(store: Store, uri: str, manifest: Manifest, to: Path) -> None:
    """A fetch that ends in the middle of the large file."""

    def enough(size: int) -> None:
        if any(size > LARGE // 4 for size in _sizes_of_parts(to)):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await store.fetch(uri, manifest.digest, to, enough)


@pytest.mark.parametrize("damage", ["bit", "short", "long", "gone", "manifest", "manifest gone", "foreign"])
async def test_f16_damage_is_found_and_mended(store: Store, kept: StoreContents, tmp_path: Path, damage: str) -> None:
    manifest = folder(tmp_path / "from")
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    at, weights = kept.below(uri), kept.read(f"{kept.below(uri)}/weights.bin")
    match damage:
        case "bit":
            kept.flip_bit(f"{at}/weights.bin")
        case "short":
            kept.write(f"{at}/weights.bin", weights[:-1])
        case "long":
            kept.write(f"{at}/weights.bin", b"x" + weights)
        case "gone":
            kept.write(f"{at}/weights.bin", b"")
        case "manifest":
            kept.write(f"{at}/{MANIFEST_FILE}", b"{}")
        case "manifest gone":
            await store.remove(uri)
        case "foreign":
            kept.write(f"{at}/{MANIFEST_FILE}", folder(tmp_path / "other").to_bytes())
    assert await store.has(uri, manifest.digest) == (damage == "bit"), "sizes tell all but a bit"
    with pytest.raises(DamagedCopy):
        await store.fetch(uri, manifest.digest, tmp_path / "to")
    assert not (tmp_path / "to" / MANIFEST_FILE).exists() and not (tmp_path / "to/weights.bin").exists()
    assert isinstance(store, RepairableStore)
    await store.repair(uri, manifest, locate_in(tmp_path / "from"))
    assert list(kept.find_differences([(uri, manifest.digest)])) == [] and kept.leftovers() == []
    await store.fetch(uri, manifest.digest, tmp_path / "to")


async def test_a_file_that_is_not_what_was_sealed_is_never_published(
    store: Store, kept: StoreContents, tmp_path: Path
) -> None:
    for big in (300_000, LARGE):
        manifest = folder(tmp_path / "from", big=big)
        with (tmp_path / "from/weights.bin").open("r+b") as file:
            file.write(b"changed")
        with pytest.raises(ManifestError, match=r"weights\.bin is not what its manifest says"):
            await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
        assert not [name for name in kept.names() if name.endswith(("weights.bin", MANIFEST_FILE))]


async def test_a_file_that_cannot_be_read_is_this_hosts_fault(store: Store, tmp_path: Path) -> None:
    for big in (300_000, LARGE):
        manifest = folder(tmp_path / "from", big=big)
        (tmp_path / "from/weights.bin").unlink()
        with pytest.raises(FileNotFoundError):
            await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))


async def test_a_file_that_is_missing_there_is_brought_again(store: Store, kept: StoreContents, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    kept.write(f"{kept.below(uri)}/weights.bin", b"short")
    assert await store.put(folder_key(), manifest, locate_in(tmp_path / "from")) == uri
    assert list(kept.find_differences([(uri, manifest.digest)])) == []


async def test_what_is_removed_is_gone_also_a_second_time(store: Store, kept: StoreContents, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    uri = await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))
    for _ in range(2):
        await store.remove(uri)
        assert not await store.has(uri, manifest.digest)
        assert kept.names().keys() == {"index.jsonl"}
    assert await store.put(folder_key(), manifest, locate_in(tmp_path / "from")) == uri


async def test_only_what_changed_is_sent_again(base: str, store: Store, kept: StoreContents, tmp_path: Path) -> None:
    """Twenty files, one of which changes: also for an agent that has just been started."""
    first = folder(tmp_path / "1", files=19)
    await store.put(folder_key(1), first, locate_in(tmp_path / "1"))
    (tmp_path / "1/shard-07.bin").write_bytes(b"changed")
    second = describe_folder(tmp_path / "1", step=2)
    unread = {file.path for file in second.files} - {"shard-07.bin", "deep/run me ~#1.sh", "empty"}
    uri = await store.put(
        folder_key(2), second, lambda file: tmp_path / ("nowhere" if file.path in unread else "1") / file.path
    )
    assert list(kept.find_differences([(uri, second.digest)])) == []


async def test_damage_does_not_spread_to_later_folders(store: Store, kept: StoreContents, tmp_path: Path) -> None:
    first = folder(tmp_path / "1")
    uri = await store.put(folder_key(1), first, locate_in(tmp_path / "1"))
    kept.flip_bit(f"{kept.below(uri)}/weights.bin")
    again = describe_folder(tmp_path / "1", step=2)
    later = await store.put(folder_key(2), again, locate_in(tmp_path / "1"))
    assert list(kept.find_differences([(later, again.digest)])) == []


async def test_a_zombie_and_the_rightful_holder_publish_one_step_at_once(
    base: str, kept: StoreContents, tmp_path: Path
) -> None:
    """S4: neither touches the other's, whatever the attempts' numbers are; which of them counts, the registry says."""
    leases = ("a" * 32, "b" * 32)
    manifests = {lease: folder(tmp_path / lease) for lease in leases}
    uris = await asyncio.gather(
        *(open_store(base).put(folder_key(1, lease), manifests[lease], locate_in(tmp_path / lease)) for lease in leases)
    )
    registry = [(uri, manifests[lease].digest) for uri, lease in zip(uris, leases, strict=True)]
    assert len(set(uris)) == 2 and list(kept.find_differences(registry)) == [] and kept.leftovers() == []
    for uri, digest in (registry[0][0], registry[1][1]), (registry[1][0], registry[0][1]):
        with pytest.raises(DamagedCopy, match="another one than was registered"):
            await open_store(base).fetch(uri, digest, tmp_path / "to")
