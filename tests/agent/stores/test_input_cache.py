"""The cache of files that were uploaded with runs."""

import asyncio
from pathlib import Path

from agent.stores.input_cache import InputCache
from relay.v1 import runs_pb2
from storage.manifest import digest_bytes


class Store:
    """Has what the test puts in, and waits with what it holds back."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {digest_bytes(data): data for data in contents}
        self.held_back: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}  #: asked for, may come
        self.fetched: list[str] = []

    async def get(self, digest: str, path: Path) -> None:
        self.fetched.append(digest)
        if digest in self.held_back:
            asked, may_come = self.held_back[digest]
            asked.set()
            await may_come.wait()
        await asyncio.to_thread(write, path, self.contents[digest])


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def files(*contents: bytes) -> list[runs_pb2.Input]:
    return [runs_pb2.Input(path=f"{index}.txt", digest=digest_bytes(data)) for index, data in enumerate(contents)]


async def test_the_least_recently_used_goes_and_what_is_rotten_is_fetched_again(tmp_path: Path) -> None:
    store, cache = Store(b"one", b"two"), InputCache(tmp_path / "cache", limit=3)
    await cache.place_inputs(store, files(b"one"), tmp_path / "a")  # type: ignore[arg-type]
    await cache.place_inputs(store, files(b"one"), tmp_path / "b")  # type: ignore[arg-type]
    assert len(store.fetched) == 1
    [kept] = (tmp_path / "cache").iterdir()
    kept.write_bytes(b"rot")
    await cache.place_inputs(store, files(b"one"), tmp_path / "c")  # type: ignore[arg-type]
    assert len(store.fetched) == 2 and (tmp_path / "c/0.txt").read_bytes() == b"one"
    await cache.place_inputs(store, files(b"two"), tmp_path / "d")  # type: ignore[arg-type]
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [b"two"]


async def test_one_run_removes_nothing_that_another_is_being_given(tmp_path: Path) -> None:
    store, cache = Store(b"one", b"slow", b"other"), InputCache(tmp_path / "cache", limit=0)
    asked, may_come = store.held_back[digest_bytes(b"slow")] = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(cache.place_inputs(store, files(b"one", b"slow", b"one"), tmp_path / "a"))  # type: ignore[arg-type]
    await asked.wait()
    await cache.place_inputs(store, files(b"other"), tmp_path / "b")  # type: ignore[arg-type]
    assert (tmp_path / "cache" / digest_bytes(b"one").removeprefix("sha256:")).exists()
    may_come.set()
    await first
    assert store.fetched.count(digest_bytes(b"one")) == 1 and (tmp_path / "a/2.txt").read_bytes() == b"one"
