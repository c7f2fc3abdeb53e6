"""`hf://` with the real client against a Hub that speaks the real protocol, and fails on demand (F22)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from storage.base import DamagedCopy, StoreRefused, StoreUnavailable
from storage.hub import uris
from storage.hub.commit_markers import AlreadyCommitted, BranchMoved, CommitMarker, HubCommit, MayCommit, decide_commit
from storage.hub.store import HOUR, CommitRateLimit
from storage.manifest import find_damage
from tests.hub.checker import find_differences
from tests.hub.checkpoints import REPO, TOKEN, Keeper, checkpoint, place
from tests.hub.server import Hub, serving

STATE = "relay/r/state"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def keeper(hub: Hub, tmp_path: Path) -> Keeper:
    return Keeper(hub, tmp_path)


def states(hub: Hub) -> list[int]:
    """Steps of the commits on the run's branch, newest first."""
    marks = [CommitMarker.parse(commit.message) for commit in hub.model(REPO).history(STATE)]
    return [mark.step for mark in marks if mark is not None]


async def test_a_checkpoint_goes_there_and_comes_back(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    """One private repository, one commit that is tagged, every byte the same."""
    store = keeper.store()
    uri, digest = await keeper.keep(store, 100)
    assert hub.model(REPO).private
    assert states(hub) == [100]
    assert hub.model(REPO).tags == {f"relay/r/step_00000100-{'a' * 32}": uris.HubUri.parse(uri).commit}
    assert await store.has(uri, digest)
    assert not await store.has(uri, "sha256:" + "0" * 64)
    done: list[int] = []
    manifest = await store.fetch(uri, digest, tmp_path / "back", done.append)
    assert find_damage(tmp_path / "back", manifest) is None
    assert sum(done) == manifest.size
    assert not (tmp_path / "back" / ".hub").exists()


async def test_a_commit_holds_one_checkpoint_and_sends_only_what_is_new(
    hub: Hub, keeper: Keeper, tmp_path: Path
) -> None:
    store = keeper.store()
    first, digest = await keeper.keep(store, 100)
    hub.transfers.clear()
    await keeper.keep(store, 200)
    assert {path.partition("/")[0] for path in hub.model(REPO).folder(STATE)} == {
        ".gitattributes",
        f"step_00000200-{'a' * 32}",
    }
    assert len([transfer for transfer in hub.transfers if transfer.startswith("PUT")]) == 1  # the optimizer
    manifest = await store.fetch(first, digest, tmp_path / "back")  # by its commit
    assert manifest.step == 100


async def test_large_files_go_in_parts(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    manifest = checkpoint(tmp_path / "c", 1, size=200_000)
    store = keeper.store()
    uri = await store.put(place(1), manifest, lambda file: tmp_path / "c" / file.path)
    assert len([transfer for transfer in hub.transfers if transfer.startswith("PUT")]) == 8
    await store.fetch(uri, manifest.digest, tmp_path / "back")


async def test_putting_again_finds_what_is_there(hub: Hub, keeper: Keeper) -> None:
    once = await keeper.keep(keeper.store(), 100)
    assert once == await keeper.keep(keeper.store(), 100)
    assert states(hub) == [100]


async def test_a_lost_reply_is_looked_up_and_never_doubled(hub: Hub, keeper: Keeper) -> None:
    fault = hub.faults.plan("POST .*/commit/", "lose")
    uri, digest = await keeper.keep(keeper.store(), 100)
    assert fault.hit == 1
    assert states(hub) == [100]
    assert await keeper.store().has(uri, digest)


@pytest.mark.rotating(3)
@pytest.mark.parametrize("request_", ["/commit/", "/preupload/", "/branch/", "/tag/", "repos/create", "/refs"])
@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_of_the_hub_passes(hub: Hub, keeper: Keeper, request_: str, status: int) -> None:
    """StoreUnavailable where neither the client nor the store retries it; the next try ends in one commit."""
    hub.faults.plan(request_, "refuse", status=status)
    try:
        await keeper.keep(keeper.store(), 100)
    except StoreUnavailable:
        await keeper.keep(keeper.store(), 100)
    assert states(hub) == [100]
    assert len(hub.model(REPO).tags) == 1


async def test_a_busy_hub_says_how_long_to_wait(hub: Hub, keeper: Keeper) -> None:
    hub.faults.plan("/commit/", "refuse", status=429, headers={"Retry-After": "17"})
    with pytest.raises(StoreUnavailable) as caught:
        await keeper.keep(keeper.store(), 100)
    assert caught.value.after == 17
    await keeper.keep(keeper.store(), 100)
    assert states(hub) == [100]


@pytest.mark.rotating(2)
@pytest.mark.parametrize("request_", ["/commit/", "PUT /models"])
@pytest.mark.parametrize("action", ["stall", "drop", "half"])
async def test_lines_that_stall_or_break_leave_nothing_half(
    hub: Hub, keeper: Keeper, tmp_path: Path, request_: str, action: str
) -> None:
    keeper.timeout = 1.0
    fault = hub.faults.plan(request_, action)  # type: ignore[arg-type]
    uri, digest = await keeper.keep(keeper.store(), 100)
    assert fault.hit == 1
    assert states(hub) == [100]
    await keeper.store().fetch(uri, digest, tmp_path / "back")


async def test_a_fetch_that_breaks_goes_on(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    uri, digest = await keeper.keep(keeper.store(), 100)
    hub.faults.plan("GET /models/me/sums", "drop")
    hub.faults.plan("/resolve/.*/trainer_state.json", "drop", times=20)
    with pytest.raises(StoreUnavailable):
        await keeper.store().fetch(uri, digest, tmp_path / "back")
    hub.faults.clear()
    manifest = await keeper.store().fetch(uri, digest, tmp_path / "back")
    assert find_damage(tmp_path / "back", manifest) is None


async def test_somebody_elses_commit_is_never_overwritten(hub: Hub, keeper: Keeper) -> None:
    store = keeper.store()
    await keeper.keep(store, 100)
    hub.model(REPO).commit({"mine.txt": b"by hand"}, STATE, title="my own", author="alice")
    with pytest.raises(StoreRefused, match=r"moved by alice \(.*'my own'\)"):
        await keeper.keep(store, 200)
    with pytest.raises(StoreRefused, match="alice"):
        await keeper.keep(keeper.store(), 200)  # also by an agent that knows of no earlier commit
    assert hub.model(REPO).folder(STATE) == {"mine.txt": b"by hand"}


async def test_of_two_attempts_at_one_step_the_later_one_stays(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    """A zombie and the rightful holder, each with a step of its own; neither gets a byte of the other's."""
    zombie, rightful = keeper.store(), keeper.store()
    await keeper.keep(zombie, 100)
    racing = asyncio.gather(keeper.keep(zombie, 200, seed=1), return_exceptions=True)
    uri, digest = await keeper.keep(rightful, 200, attempt=2, seed=2)
    await racing
    with pytest.raises(StoreRefused, match="later attempt"):
        await keeper.keep(zombie, 300)
    assert CommitMarker.parse(next(hub.model(REPO).history(STATE)).message) == CommitMarker(
        "state", "r", 2, "b" * 32, 200
    )
    await keeper.store().fetch(uri, digest, tmp_path / "back")


async def test_what_nobody_registered_is_swept_by_the_next_attempt(hub: Hub, keeper: Keeper) -> None:
    store = keeper.store()
    kept = [await keeper.keep(store, step) for step in (100, 200)]
    mine = await keeper.keep(store, 300, attempt=2)
    known = [kept[0][0]]
    assert await store.sweep(place(300, attempt=2), known) == 1
    assert find_differences(hub.model(REPO), [kept[0], mine]) == []
    assert await store.sweep(place(300, attempt=2), known) == 0
    assert await keeper.store("me/nothing").sweep(place(300, attempt=2), []) == 0


async def publish(keeper: Keeper, mark: CommitMarker) -> dict[str, str]:
    own = uris.model_branch(mark.run)
    texts = {branch: {"relay.json": f"{mark.run} {mark.attempt}"} for branch in ("main", own)}
    done: dict[str, str] = await keeper.worker().run_job(
        "publish_model", repo=REPO, marker=asdict(mark), files={}, texts=texts, expected=None
    )
    return done


async def test_of_two_attempts_that_publish_one_step_the_later_one_shows(hub: Hub, keeper: Keeper) -> None:
    old, new = (CommitMarker("model", "r", attempt, str(attempt) * 32, 100) for attempt in (1, 2))
    await asyncio.gather(publish(keeper, old), publish(keeper, new), return_exceptions=True)
    await publish(keeper, new)
    assert hub.model(REPO).folder("main")["relay.json"] == b"r 2"
    with pytest.raises(StoreRefused, match="later attempt"):
        await publish(keeper, replace(old, step=200))
    marks = [CommitMarker.parse(commit.message) for commit in hub.model(REPO).history("main")]
    assert [mark for mark in marks if mark == new] == [new]


async def test_main_belongs_to_the_run_that_was_first(hub: Hub, keeper: Keeper) -> None:
    one, two = (CommitMarker("model", run, 1, run * 32, 100) for run in ("a", "b"))
    done = await asyncio.gather(publish(keeper, one), publish(keeper, two))
    branches = [each["branch"] for each in done]
    assert sorted(branches) in (["main", "relay/a/model"], ["main", "relay/b/model"])
    owner = "ab"[branches.index("main")]
    assert hub.model(REPO).folder("main")["relay.json"] == f"{owner} 1".encode()
    notes = [each["note"] for each in done if each["branch"] != "main"]
    assert "main of me/sums" in notes[0]


async def test_a_promoted_run_has_main_from_then_on(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    one, two = (CommitMarker("model", run, 1, run * 32, 100) for run in ("a", "b"))
    await publish(keeper, one)
    with pytest.raises(StoreRefused, match="no branch of b's"):
        await keeper.worker().run_job("promote_model", repo=REPO, run="b")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    texts = {"README.md": 'load("me/sums", revision="relay/b/model")', "relay.json": "b 1"}
    files = {"w.safetensors": str(tmp_path / "w.safetensors")}
    job: dict[str, Any] = {"repo": REPO, "marker": asdict(two), "texts": {"relay/b/model": texts}, "expected": None}
    await keeper.worker().run_job("publish_model", files=files, **job)
    done = await keeper.worker().run_job("promote_model", repo=REPO, run="b")
    main = hub.model(REPO).folder("main")
    assert done["commit"] == hub.model(REPO).branches["main"]
    assert (main["relay.json"], main["README.md"]) == (b"b 1", b'load("me/sums")')
    assert main["w.safetensors"] == b"weights"
    assert (await publish(keeper, replace(two, step=200)))["branch"] == "main"
    assert (await publish(keeper, replace(one, step=200)))["branch"] == "relay/a/model"


async def test_a_token_that_may_not_write_is_reported(hub: Hub, keeper: Keeper) -> None:
    hub.tokens[TOKEN] = "read"
    with pytest.raises(StoreRefused, match="HF_TOKEN must be one that may write"):
        await keeper.keep(keeper.store(), 100)
    hub.tokens[TOKEN] = "write"
    uri, digest = await keeper.keep(keeper.store(), 100)
    keeper.more = {"HF_TOKEN": ""}
    with pytest.raises(StoreRefused, match="HF_TOKEN is needed"):
        await keeper.store().fetch(uri, digest, keeper.folder / "back")


async def test_what_is_damaged_or_gone_is_reported(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    store = keeper.store()
    uri, digest = await keeper.keep(store, 100)
    large = hub.model(REPO).large
    name, body = next(iter(large.items()))
    large[name] = body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(DamagedCopy, match="does not match its digest"):
        await store.fetch(uri, digest, tmp_path / "a")
    del large[name]
    with pytest.raises(DamagedCopy):
        await store.fetch(uri, digest, tmp_path / "b")
    with pytest.raises(DamagedCopy):
        await store.fetch(uri.replace(uri[uri.index("@") + 1 :][:40], "0" * 40), digest, tmp_path / "c")


async def test_what_is_removed_is_gone_and_the_rest_stays(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    """Large files of the removed step leave the LFS list; what the others share with it stays; again is harmless."""
    store = keeper.store()
    kept = [await keeper.keep(store, step) for step in (100, 200, 300)]
    repository = hub.model(REPO)
    before = set(repository.large)
    await store.remove(kept[0][0])
    assert len(before - set(repository.large)) == 1  # its optimizer; the frozen weights are the others', too
    assert len(list(repository.history(STATE))) == 1
    assert not await store.has(*kept[0])
    for number, (uri, digest) in enumerate(kept[1:]):
        assert await store.has(uri, digest)
        await store.fetch(uri, digest, tmp_path / str(number))
    await store.remove(kept[0][0])
    await store.remove(kept[2][0])
    last = await keeper.keep(store, 400)  # the branch has moved by squashing: it is chained from
    for uri, _ in (kept[1], last):
        await store.remove(uri)
    assert repository.large == {}
    assert repository.tags == {}


async def test_the_token_is_in_no_argument_and_no_error(hub: Hub, keeper: Keeper) -> None:
    """R6."""
    hub.faults.plan("/commit/", "stall")
    putting = asyncio.create_task(keeper.keep(keeper.store(), 100))
    await asyncio.to_thread(hub.faults.stalled.wait, 30)
    lines = await asyncio.to_thread(command_lines)
    assert any(b"storage.hub" in line for line in lines)
    assert not any(TOKEN.encode() in line for line in lines)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)


def command_lines() -> list[bytes]:
    """Of all processes."""
    return [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]


async def test_without_the_client_the_error_says_what_is_missing(hub: Hub, keeper: Keeper, tmp_path: Path) -> None:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "huggingface_hub.py").write_text("raise ImportError('none here')")
    path = keeper.worker().environment["PYTHONPATH"]
    keeper.more = {"PYTHONPATH": f"{tmp_path / 'shadow'}:{path}"}
    with pytest.raises(StoreRefused, match="huggingface_hub cannot be used"):
        await keeper.keep(keeper.store(), 100)


def test_a_mark_is_read_back_from_a_message() -> None:
    mark = CommitMarker("state", "a-run.1", 2, "f" * 32, 100)
    assert CommitMarker.parse(f"State of step 100\n\n{mark.trailer}") == mark
    assert CommitMarker.parse("Update README.md") is None


def make_commit(name: str, mark: CommitMarker | None) -> HubCommit:
    return HubCommit(name, "title", "alice", mark)


def test_whose_turn_it_is() -> None:
    ours, old = CommitMarker("state", "r", 2, "b", 200), CommitMarker("state", "r", 1, "a", 100)
    newer, other = CommitMarker("state", "r", 3, "c", 150), CommitMarker("state", "q", 1, "d", 100)
    begin = make_commit("0", None)
    assert decide_commit(ours, [begin], None, fresh="0") == MayCommit("0")
    assert decide_commit(ours, [make_commit("1", old), begin], "0") == MayCommit("1")
    assert decide_commit(ours, [make_commit("2", ours), make_commit("1", old)], None) == AlreadyCommitted("2")
    assert decide_commit(ours, [make_commit("2", newer), make_commit("1", old)], "1") == BranchMoved(
        make_commit("2", newer), newer=True
    )
    assert decide_commit(ours, [make_commit("2", other), make_commit("1", old)], "1") == BranchMoved(
        make_commit("2", other)
    )
    assert decide_commit(
        ours, [make_commit("3", old), make_commit("2", None), make_commit("1", old)], "1"
    ) == BranchMoved(make_commit("2", None))
    assert decide_commit(ours, [make_commit("3", None)], "1") == BranchMoved(make_commit("3", None))


def test_of_one_attempts_models_an_older_one_follows_none_that_is_newer() -> None:
    """Nor anything its result. Attempts of one number may be two, after a failover that lost something."""

    older, newer, result = (
        CommitMarker("model", "r", 1, "a", 5),
        CommitMarker("model", "r", 1, "a", 9),
        CommitMarker("result", "r", 1, "a", 9),
    )
    for ours, theirs in ((older, newer), (newer, result)):
        assert decide_commit(ours, [make_commit("1", theirs)], None) == BranchMoved(
            make_commit("1", theirs), newer=True
        )
        assert decide_commit(theirs, [make_commit("1", ours)], None) == MayCommit("1")
    assert decide_commit(replace(older, lease="b"), [make_commit("1", newer)], None) == MayCommit("1")
    states = [replace(each, kind="state") for each in (older, newer)]
    assert decide_commit(states[0], [make_commit("1", states[1])], None) == MayCommit("1")


def test_names_are_what_git_takes() -> None:
    assert uris.state_branch("a-run") == "relay/a-run/state"
    for name in ("a..b", "a.lock", "a."):
        made = uris.state_branch(name)
        assert ".." not in made and ".lock/" not in made and "./" not in made
    with pytest.raises(StoreRefused, match="hf://owner/repo@<commit>"):
        uris.HubUri.parse("hf://me/sums")


def test_a_budget_holds_back_what_is_too_much() -> None:
    commit_limit = CommitRateLimit(limit=2)
    commit_limit.record("a", 0.0)
    commit_limit.record("a", 10.0)
    assert commit_limit.delay("a", 20.0) == HOUR - 20.0
    assert commit_limit.delay("b", 20.0) == 0.0
    assert commit_limit.delay("a", HOUR + 1) == 0.0
