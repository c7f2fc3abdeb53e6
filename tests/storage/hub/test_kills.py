"""Whatever moment a publication, a removal or a fetch is killed at: the Hub and the registry agree afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from storage.hub.commit_markers import CommitMarker
from storage.manifest import find_damage
from tests.hub.checker import find_differences
from tests.hub.checkpoints import REPO, Keeper
from tests.hub.repository import Lfs
from tests.hub.server import Hub, serving
from tests.tiers import Tier

HOW = ("stall", "hang", "half")  #: before the Hub has done it, after, or in the middle of what is sent


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


async def killed_at(hub: Hub, request: int, how: str, work: Callable[[], Awaitable[object]]) -> bool:
    """Whether `work` was killed at its so many-th request; it may be through before."""
    if how == "half":  # the client tries again: it is killed then
        hub.faults.plan("", "half", after=request)
    hub.faults.plan("", "hang" if how == "hang" else "stall", after=request)
    working = asyncio.ensure_future(work())
    stalled = asyncio.create_task(asyncio.to_thread(hub.faults.stalled.wait, 60))
    await asyncio.wait({working, stalled}, return_when=asyncio.FIRST_COMPLETED)
    killed = not working.done()
    working.cancel()
    hub.faults.stalled.set()
    await asyncio.gather(working, stalled, return_exceptions=True)
    hub.faults.clear()
    return killed


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_at_many_moments_of_publications(hub: Hub, tmp_path: Path, tier: Tier) -> None:
    """SIGKILL of the process on the Hub at requests drawn by a seed; the next one finishes its work (S4)."""
    draw, moments = tier.random(7), tier.pick(4, 50)
    keeper = Keeper(hub, tmp_path, timeout=5.0)
    registry: list[tuple[str, str]] = []
    store, kills, step = keeper.store(), 0, 0
    while kills < moments:
        step += 1
        moment, how = draw.randrange(18), draw.choice(HOW)
        if await killed_at(hub, moment, how, partial(keeper.keep, store, step)):
            kills += 1
            store = keeper.store()  # the agent may be another one, too
        registry.append(await keeper.keep(store, step))
        if len(registry) > 3 and draw.random() < 0.4:
            oldest = registry[0]
            if await killed_at(hub, draw.randrange(16), how, partial(store.remove, oldest[0])):
                kills += 1
            await store.remove(oldest[0])
            registry.pop(0)
        assert find_differences(hub.model(REPO), registry) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_at_many_moments_of_publishing_a_model(hub: Hub, tmp_path: Path, tier: Tier) -> None:
    """`main` shows one step after the other, each whole and once."""
    draw, last = tier.random(3), tier.pick(2, 15)
    worker = Keeper(hub, tmp_path).worker()
    for step in range(1, last + 1):
        (tmp_path / "model.safetensors").write_bytes(b"%d" % step * 500)
        mark = CommitMarker("model", "r", 1, "a" * 32, step)
        texts = {"README.md": f"step {step}", "relay.json": json.dumps({"run": "r", "step": step})}
        publish = partial(
            worker.run_job,
            "publish_model",
            repo=REPO,
            marker=asdict(mark),
            files={"model.safetensors": str(tmp_path / "model.safetensors")},
            texts={"main": texts, "relay/r/model": texts},
            expected=None,
        )
        await killed_at(hub, draw.randrange(12), draw.choice(HOW), publish)
        done = await publish()
        assert done["branch"] == "main" and not done["note"]
        files = hub.model(REPO).folder("main")
        assert json.loads(files["relay.json"])["step"] == step
        assert files["model.safetensors"] == b"%d" % step * 500
    marks = [CommitMarker.parse(commit.message) for commit in hub.model(REPO).history("main")]
    assert [mark.step for mark in marks if mark] == list(range(last, 0, -1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_at_many_moments_of_fetches(hub: Hub, tmp_path: Path, tier: Tier) -> None:
    """The next one resumes from what is there, and nothing of the client's is left beside the files."""
    draw = tier.random(11)
    keeper = Keeper(hub, tmp_path)
    uri, digest = await keeper.keep(keeper.store(), 100)
    for number in range(tier.pick(1, 8)):
        back = tmp_path / f"back-{number}"
        killed = 0
        while killed < 2 and await killed_at(
            hub, draw.randrange(9), draw.choice(HOW), partial(keeper.store().fetch, uri, digest, back)
        ):
            killed += 1
        manifest = await keeper.store().fetch(uri, digest, back)
        assert find_damage(back, manifest) is None
        found = {path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()}
        assert found == {file.path for file in manifest.files} | {"manifest.json"}


async def test_the_checker_catches_what_is_planted(hub: Hub, tmp_path: Path) -> None:
    keeper = Keeper(hub, tmp_path)
    store = keeper.store()
    registry = [await keeper.keep(store, step) for step in (100, 200)]
    repository = hub.model(REPO)
    assert find_differences(repository, registry) == []
    uri, digest = registry[0]
    elsewhere = uri.replace(uri.partition("@")[2][:40], "0" * 40)
    assert any("registered and not there" in each for each in find_differences(repository, [(elsewhere, digest)]))
    assert any("not registered" in each for each in find_differences(repository, registry[:1]))
    commit = repository.commits[uri.partition("@")[2][:40]]
    lost = next(file.digest for file in commit.files.values() if isinstance(file, Lfs))
    body = repository.large.pop(lost)
    assert any("not what the manifest says" in each for each in find_differences(repository, registry))
    repository.large[lost] = body
    repository.commits["1" * 40] = replace(commit, id="1" * 40)
    assert any("2 commits of" in each for each in find_differences(repository, registry))
