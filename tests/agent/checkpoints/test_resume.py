"""Which copy of a checkpoint is taken, and what becomes of the others."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.checkpoints.resume import UNREACHABLE_AFTER, ResumePoint, StoresUnreachable, choose_checkpoint, repair_copies
from agent.events.journal import Journal
from agent.stores.retry import StoreRetry
from relay.v1 import runs_pb2
from storage.base import FolderKey, Store
from storage.folder import FolderStore
from storage.manifest import MANIFEST_FILE, describe_folder, find_damage


class Copies:
    """One checkpoint of step 4 in several shared folders, each of which is a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores: dict[str, Store] = {}
        self.uris: dict[str, str] = {}
        self.clock = 0.0
        (folder / "sealed").mkdir(parents=True)
        (folder / "sealed/weights.bin").write_bytes(os.urandom(100_000))
        self.manifest = describe_folder(folder / "sealed", step=4)
        (folder / "sealed" / MANIFEST_FILE).write_bytes(self.manifest.to_bytes())

    async def add(self, scheme: str) -> Path:
        """A copy; the path of its weights."""
        share = self.folder / scheme
        share.mkdir()
        place = FolderKey(run="r", framework="hf", attempt=1, lease="1" * 32, step=4)
        self.stores[scheme] = store = FolderStore(share.as_uri())
        self.uris[scheme] = await store.put(place, self.manifest, lambda file: self.folder / "sealed" / file.path)
        return Path(self.uris[scheme].removeprefix("file://")) / "weights.bin"

    def checkpoint(self) -> runs_pb2.Checkpoint:
        copies = [runs_pb2.Copy(store=scheme, uri=uri) for scheme, uri in self.uris.items()]
        copies.append(runs_pb2.Copy(store="host", uri="host://agents/a"))
        part = runs_pb2.CheckpointPart(manifest_digest=self.manifest.digest, copies=copies)
        return runs_pb2.Checkpoint(name="runs/r/checkpoints/x", step=4, parts=[part])

    async def choose(self, here: Path | None = None, passing: Callable[[], None] = lambda: None) -> ResumePoint:
        def now() -> float:
            passing()
            return self.clock

        return await choose_checkpoint(
            [self.checkpoint()],
            0,
            host="host://agents/a",
            here=lambda _: here or self.folder / "nowhere",
            stores=self.stores,
            scratch=self.folder / "resume",
            retry=StoreRetry(self.journal, now, first_pause=0.0),
        )

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "agent.jsonl", lambda: 0.0)

    def messages(self) -> list[str]:
        path = self.folder / "agent.jsonl"
        return [json.loads(line)["text"] for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


def flip_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


async def test_f16_a_damaged_copy_is_passed_over_for_another_and_made_anew(copies: Copies) -> None:
    wrong = await copies.add("one")
    await copies.add("two")
    flip_bit(wrong)
    chosen = await copies.choose()
    assert chosen.step == 4 and not chosen.skipped and chosen.folder is not None
    assert find_damage(chosen.folder, copies.manifest) is None
    await repair_copies(chosen, copies.stores, copies.journal)
    assert copies.messages() == [
        "the checkpoint of step 4 has a damaged copy: the copy in one://: weights.bin does not match its digest",
        "the copy of step 4 in one:// is right again",
    ]
    assert find_damage(wrong.parent, copies.manifest) is None


async def test_f16_this_hosts_own_copy_is_wrong_and_the_stores_is_sound(copies: Copies) -> None:
    await copies.add("one")
    flip_bit(copies.folder / "sealed/weights.bin")
    chosen = await copies.choose(here=copies.folder / "sealed")
    assert chosen.folder == copies.folder / "resume/step_00000004"
    await repair_copies(chosen, copies.stores, copies.journal)
    (messages,) = copies.messages()
    assert "this host's copy: weights.bin does not match its digest" in messages


async def test_what_is_gone_from_a_store_is_brought_there_again(copies: Copies) -> None:
    gone = await copies.add("one")
    gone.unlink()
    chosen = await copies.choose(here=copies.folder / "sealed")
    assert chosen.folder == copies.folder / "sealed"
    await repair_copies(chosen, copies.stores, copies.journal)
    assert find_damage(gone.parent, copies.manifest) is None


async def test_no_copy_that_is_sound_is_a_checkpoint_passed_over(copies: Copies) -> None:
    for scheme in ("one", "two"):
        flip_bit(await copies.add(scheme))
    chosen = await copies.choose()
    (skipped,) = chosen.skipped
    assert chosen.folder is None and skipped.reason.count("does not match its digest") == 2


async def test_f11_a_store_that_is_away_is_not_waited_for_when_another_has_a_copy(copies: Copies) -> None:
    await copies.add("one")
    await copies.add("two")
    (copies.folder / "one").rename(copies.folder / "unmounted")
    assert (await copies.choose()).step == 4


async def test_f11_a_store_that_is_away_is_waited_for(copies: Copies) -> None:
    await copies.add("one")
    (copies.folder / "one").rename(copies.folder / "unmounted")

    def mount() -> None:
        copies.clock += 100.0
        if copies.clock == 500.0:
            (copies.folder / "unmounted").rename(copies.folder / "one")

    assert (await copies.choose(passing=mount)).step == 4
    assert any("fails, and is tried again" in text for text in copies.messages())


async def test_f11_a_store_that_stays_away_sends_the_run_elsewhere(copies: Copies) -> None:
    await copies.add("one")
    (copies.folder / "one").rename(copies.folder / "unmounted")

    def wait() -> None:
        copies.clock += UNREACHABLE_AFTER / 4

    with pytest.raises(StoresUnreachable, match="is it mounted"):
        await copies.choose(passing=wait)
