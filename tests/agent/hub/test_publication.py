"""A real agent publishes what stub trainers save, on a Hub that speaks the real protocol (F22)."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from storage.hub.commit_markers import CommitMarker
from tests.agent.fake_coordinator import FakeCoordinator, Lease
from tests.agent.hosts import Gate, Host, MakeHost, stub
from tests.hub.server import Hub, serving

TOKEN = "hf_canary"
REPO = "me/sums"
pytestmark = pytest.mark.rotating(7)
FIRST, SECOND = "1" * 32, "2" * 32


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


async def start_run(hub: Hub, hosts: MakeHost, fake: FakeCoordinator, **environment: str) -> Host:
    """A host with a token."""
    host = hosts(fake.address)
    host.environment = hub.environ(host.folder / "cache") | {"HF_TOKEN": TOKEN} | environment
    await host.start()
    return host


def published(hub: Hub, branch: str = "main", repo: str = REPO) -> list[tuple[str, int]]:
    """Kinds and steps of Relay's commits, oldest first."""
    marks = [CommitMarker.parse(commit.message) for commit in hub.model(repo).history(branch)]
    return [(mark.kind, mark.step) for mark in reversed(marks) if mark is not None]


def synced(host: Host, run: str = "r") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((host.root / "runs" / run / "hf" / "last_synced.json").read_text())
    return found


def with_hub(spec: dict[str, Any], **hub: Any) -> dict[str, Any]:
    return spec | {"hub": {"repo": REPO, **hub}}


async def succeeded(fake: FakeCoordinator, lease: Lease) -> None:
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded", lease.messages()


async def test_the_first_checkpoint_the_last_and_the_result_are_published(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate
) -> None:
    """Steps in between wait for `every`, and are overtaken."""
    host = await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=6, save_every=2, gate=gate.path)))
    gate.let(2)
    await fake.until(lambda: "step 2 is published" in lease.messages())
    assert synced(host)["step"] == 2
    gate.let(4)
    await succeeded(fake, lease)
    assert published(hub) == [("model", 2), ("result", 6)]
    files = hub.model(REPO).folder("main")
    told = json.loads(files["relay.json"])
    assert (told["run"], told["step"], told["final"], told["lease"]) == ("r", 6, True, FIRST)
    assert files["README.md"].startswith(b"---\n")
    last = synced(host)
    assert (last["step"], last["repo"], last["branch"]) == (6, REPO, "main")
    assert last["commit"] == hub.model(REPO).branches["main"] and last["time"]
    assert hub.model(REPO).private


async def test_a_stop_publishes_the_newest(fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate) -> None:
    await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=9, save_every=0, gate=gate.path), every="500 steps"))
    gate.let(3)
    await fake.until(lambda: lease.steps() == [1, 2, 3])
    await fake.stop(lease, grace=20.0)
    await fake.until(lambda: lease.ended)
    assert published(hub) == [("model", 3)]


async def test_a_dry_run_writes_only_what_it_would_have_sent(fake: FakeCoordinator, hosts: MakeHost, hub: Hub) -> None:
    host = await start_run(hub, hosts, fake)
    await succeeded(fake, await fake.grant(with_hub(stub(steps=2, save_every=2), dry_run=True)))
    last = synced(host)
    assert (last["step"], last["commit"], last["dry_run"]) == (2, None, True)
    assert hub.requests == []


async def test_the_agents_environment_speaks_for_runs_that_say_nothing(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub
) -> None:
    """Row A7."""
    environment = {"HF_REPO": "me/other", "RELAY_HF_SYNC_INTERVAL": "14400", "HF_DRY_RUN": "0"}
    await start_run(hub, hosts, fake, **environment)
    await succeeded(fake, await fake.grant(stub(steps=2, save_every=2)))
    assert published(hub, repo="me/other")[-1] == ("result", 2)


async def test_another_run_in_the_same_repository_has_its_own_branch(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub
) -> None:
    host = await start_run(hub, hosts, fake)
    await succeeded(fake, await fake.grant(with_hub(stub("one", steps=2, save_every=2))))
    before = hub.model(REPO).folder("main")
    lease = await fake.grant(with_hub(stub("two", steps=2, save_every=2)), SECOND)
    await succeeded(fake, lease)
    assert hub.model(REPO).folder("main") == before
    assert published(hub, "relay/two/model")[-1] == ("result", 2)
    assert "belongs to run one" in lease.messages()
    assert synced(host, "two")["branch"] == "relay/two/model"


async def test_what_somebody_changed_by_hand_is_not_overwritten(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate
) -> None:
    await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=4, save_every=2, gate=gate.path)))
    gate.let(2)
    await fake.until(lambda: "step 2 is published" in lease.messages())
    hub.model(REPO).commit({"README.md": b"mine"}, title="better words", author="alice")
    gate.let(2)
    await succeeded(fake, lease)
    assert hub.model(REPO).folder("main") == {"README.md": b"mine"}
    assert published(hub, "relay/r/model")[-1] == ("result", 4)
    assert "alice" in lease.messages() and "better words" in lease.messages()


@pytest.mark.parametrize(
    ("request_", "action", "more"),
    [
        ("/commit/", "lose", {}),
        ("/commit/", "refuse", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("/commit/", "refuse", {"status": 503}),
        ("/preupload/", "refuse", {"status": 500}),
        ("repos/create", "drop", {}),
    ],
)
async def test_faults_of_the_hub_end_in_one_commit(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub, request_: str, action: str, more: dict[str, Any]
) -> None:
    hub.faults.plan(request_, action, **more)  # type: ignore[arg-type]
    await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=2, save_every=2)))
    await succeeded(fake, lease)
    assert published(hub).count(("result", 2)) == 1


async def test_a_hub_that_is_away_holds_up_no_step(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate
) -> None:
    """It is said once; when the Hub is back the newest goes."""
    hub.failing = True
    await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=6, save_every=2, gate=gate.path)))
    gate.let(2)
    await fake.until(lambda: "fails, and is tried again" in lease.messages())
    gate.let(3)
    await fake.until(lambda: lease.steps() == [1, 2, 3, 4, 5] and 4 in lease.copied())
    hub.failing = False
    await fake.until(lambda: "works again" in lease.messages())
    gate.let(1)
    await succeeded(fake, lease)
    assert lease.messages().count("fails, and is tried again") == 1
    assert published(hub)[-1] == ("result", 6)


async def test_a_host_that_leaves_publishes_the_newest(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate
) -> None:
    host = await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=9, save_every=2, gate=gate.path), every="500 steps"))
    gate.let(2)
    await fake.until(lambda: "step 2 is published" in lease.messages())
    gate.let(1)
    await fake.until(lambda: lease.steps() == [1, 2, 3])
    assert await host.end() == 0
    assert published(hub) == [("model", 2), ("model", 3)]


async def test_a_token_that_may_not_write_is_an_event_and_training_goes_on(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub
) -> None:
    hub.tokens[TOKEN] = "read"
    host = await start_run(hub, hosts, fake)
    lease = await fake.grant(with_hub(stub(steps=4, save_every=2)))
    await succeeded(fake, lease)
    assert "HF_TOKEN must be one that may write there" in lease.messages()
    assert TOKEN not in lease.messages() + host.log.read_text()
    assert TOKEN.encode() not in b"".join(lease.sources.values())


async def kept_on_the_hub(fake: FakeCoordinator, gate: Gate) -> Lease:
    """A run whose first checkpoint's state is there, and that is through."""
    lease = await fake.grant(with_hub(stub(steps=3, save_every=2, gate=gate.path), state=True))
    gate.let(2)
    await fake.until(lambda: 2 in lease.checkpoints and "hf" in stores(lease, 2))
    gate.let(1)
    await succeeded(fake, lease)
    return lease


def stores(lease: Lease, step: int) -> dict[str, str]:
    """Uris of a checkpoint's copies by store."""
    return {copy.store: copy.uri for copy in lease.checkpoints[step].parts[0].copies}


async def test_state_goes_there_as_one_more_copy(fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate) -> None:
    """Its cost is said first."""
    await start_run(hub, hosts, fake)
    lease = await kept_on_the_hub(fake, gate)
    copies = stores(lease, 2)
    assert set(copies) == {"host", "relay", "hf"}
    commit = copies["hf"].partition("@")[2][:40]
    assert CommitMarker.parse(hub.model(REPO).commits[commit].message) == CommitMarker("state", "r", 1, FIRST, 2)
    texts = lease.messages()
    assert "hub.state: each save is" in texts and "a day" in texts


async def test_a_bare_host_resumes_from_the_hub(fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate) -> None:
    first = await start_run(hub, hosts, fake)
    lease = await kept_on_the_hub(fake, gate)
    await first.vanish()
    await fake.end(lease)
    checkpoint = lease.checkpoints[2]
    for copy in list(checkpoint.parts[0].copies):
        if copy.store != "hf":
            checkpoint.parts[0].copies.remove(copy)
    second = hosts(fake.address)
    second.environment = first.environment | {"HF_HOME": str(second.folder / "cache")}
    await second.start()
    again = await fake.grant(stub(steps=4, save_every=2), SECOND, attempt=2, checkpoints=[checkpoint])
    await succeeded(fake, again)
    assert again.started.checkpoint == checkpoint.name
    assert again.steps() == [3, 4]


async def test_the_agent_dies_while_it_publishes_and_the_next_one_finishes(
    fake: FakeCoordinator, hosts: MakeHost, hub: Hub, gate: Gate
) -> None:
    """What talks to the Hub dies with it; the step is there once."""
    host = await start_run(hub, hosts, fake)
    hub.faults.plan("/commit/", "hang")
    lease = await fake.grant(with_hub(stub(steps=4, save_every=2, gate=gate.path)))
    gate.let(2)
    assert await asyncio.to_thread(hub.faults.stalled.wait, 60)
    await host.end(signal.SIGKILL)
    hub.faults.clear()
    await host.start()
    gate.let(2)
    await succeeded(fake, lease)
    assert published(hub) == [("model", 2), ("result", 4)]
