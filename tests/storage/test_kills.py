"""SIGKILL at random moments of publications, and of fetches, for every store."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.base import DamagedCopy, Store
from storage.manifest import MANIFEST_FILE, Manifest, find_damage
from storage.stores import open_store
from tests.storage.contents import StoreContents, folder, folder_key
from tests.tiers import Tier

ROOT = Path(__file__).resolve().parents[2]
#: How often a process is killed on a commit, and in the thorough tier.
KILLS = (4, 50)
SIZE = 9 * 1024 * 1024  #: of the large file, which a bucket takes in parts
LONGEST = 0.4  #: seconds from the first sign of life of a process to its end, at most


class Victim:
    """A process that transfers, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, verb: str, base: str, path: Path, job: str = "") -> "Victim":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.storage.transferring", verb, base, str(path)),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(job.encode())
        await process.stdin.drain()
        return cls(process)

    async def live(self, seconds: float) -> None:
        """So long from the first thing that it says; then SIGKILL, wherever it is."""
        await self._hear()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self._hear()
        except TimeoutError:
            self.process.send_signal(signal.SIGKILL)
        while await self._hear():
            continue
        assert await self.process.wait() == -signal.SIGKILL
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def _hear(self) -> bool:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if line.endswith(b"\n"):
            self.said.append(json.loads(line))
        return bool(line)

    def last(self, what: str, otherwise: int = 0) -> int:
        return max((each[what] for each in self.said if what in each), default=otherwise)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_while_it_publishes(base: str, kept: StoreContents, tmp_path: Path, tier: Tier) -> None:
    random, registry = tier.random(base.partition(":")[0]), set[tuple[str, str]]()
    path, interrupted = tmp_path / "from", 0
    await found(open_store(base, writer="killed"), path)
    for kill in range(tier.pick(*KILLS)):
        manifest = folder(path, big=SIZE)
        victim = await Victim.start("put", base, path)
        await victim.live(random.uniform(0.0, LONGEST))
        registry |= {(each["uri"], each["digest"]) for each in victim.said if "done" in each}
        store = open_store(base, writer="killed")
        await never_half(store, kept, victim.last("begun"), manifest, tmp_path / f"to-{kill}")
        assert list(kept.find_differences(registry)) == []
        interrupted += bool(kept.leftovers())
        await forget(store, kept, path)  # so that the next one has something to do
        registry.clear()
    if tier.thorough:
        assert interrupted > KILLS[1] / 10, "most kills met nothing in the making"


async def found(store: Store, path: Path) -> None:
    """Where nothing ever lay, a folder that is missing is no damage: it may be a disk that is not mounted."""
    await store.remove(await store.put(folder_key(), folder(path), lambda file: path / file.path))


async def never_half(store: Store, kept: StoreContents, step: int, manifest: Manifest, to: Path) -> None:
    """The folder that was in the making is whole, or nobody takes it for one."""
    uri = f"{kept.base}/r/checkpoints/0001-{'1' * 32}/step_{step:08d}"
    if await store.has(uri, manifest.digest):
        assert find_damage(to, await store.fetch(uri, manifest.digest, to)) is None
        assert list(kept.find_differences([(uri, manifest.digest)])) == []
    else:
        with pytest.raises(DamagedCopy):
            await store.fetch(uri, manifest.digest, to)
        assert not (to / MANIFEST_FILE).exists()


async def forget(store: Store, kept: StoreContents, path: Path) -> None:
    """Remove all folders. What was in the making the writer's next upload removes from a folder that hosts share; in a
    bucket it stays until somebody removes it, and its parts until a lifecycle rule does."""
    for name in [name for name in kept.names() if name.endswith(f"/{MANIFEST_FILE}")]:
        await store.remove(f"{kept.base}/{name.removesuffix(f'/{MANIFEST_FILE}')}")
    if kept.address:
        kept.erase(kept.leftovers())
    await found(store, path)
    assert kept.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_while_it_fetches(base: str, store: Store, tmp_path: Path, tier: Tier) -> None:
    random = tier.random(base.partition(":")[0])
    manifest = folder(tmp_path / "from", big=SIZE)
    uri = await store.put(folder_key(), manifest, lambda file: tmp_path / "from" / file.path)
    first = 0
    for _ in range(tier.pick(*KILLS)):
        job = json.dumps({"uri": uri, "digest": manifest.digest, "first": first}) + "\n"
        victim = await Victim.start("fetch", base, tmp_path / "to", job)
        await victim.live(random.uniform(0.0, LONGEST))
        for number in (each["done"] for each in victim.said if "done" in each):
            assert find_damage(tmp_path / "to" / str(number), manifest) is None
        first = victim.last("begun", first)  # the next one goes on with what this one has left
        for path in (tmp_path / "to" / str(first)).rglob("*.bin"):
            assert path.stat().st_size in {file.size for file in manifest.files}, "a name is given to what is whole"
    whole = await store.fetch(uri, manifest.digest, tmp_path / "to" / str(first))
    assert find_damage(tmp_path / "to" / str(first), whole) is None
    assert not list((tmp_path / "to" / str(first)).glob(".relay-part-*")), "nothing is left of earlier tries"


async def test_the_checker_finds_a_planted_disagreement(store: Store, kept: StoreContents, tmp_path: Path) -> None:
    manifest = folder(tmp_path / "from")
    uri = await store.put(folder_key(), manifest, lambda file: tmp_path / "from" / file.path)
    registry = [(uri, manifest.digest)]
    assert list(kept.find_differences(registry)) == []
    kept.flip_bit(f"{kept.below(uri)}/weights.bin")
    assert list(kept.find_differences(registry)) == [f"{uri}: weights.bin is damaged"]
    kept.write(f"{kept.below(uri)}/{MANIFEST_FILE}", folder(tmp_path / "other").to_bytes())
    assert f"{uri}: another manifest" in list(kept.find_differences(registry))
    await store.remove(uri)
    assert len(list(kept.find_differences(registry))) == 1
    kept.write("r/checkpoints/half/step_00000001/weights.bin", b"half")
    assert kept.leftovers() == ["r/checkpoints/half/step_00000001/weights.bin"]
