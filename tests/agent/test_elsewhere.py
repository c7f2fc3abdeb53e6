"""Runs whose checkpoints go to a store of their own: real agents, a shared folder, a scripted coordinator."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from relay.v1 import runs_pb2
from tests.agent.fake_coordinator import FakeCoordinator, Lease
from tests.agent.hosts import Gate, MakeHost, stub
from tests.proxy import Proxy

SECOND = "2" * 32


@pytest.fixture
def share(short_tmp_path: Path) -> Path:
    (short_tmp_path / "share").mkdir()
    return short_tmp_path / "share"


def spec(share: Path, layout: str = "relay", **env: Any) -> dict[str, Any]:
    return stub(**env) | {"checkpoint": {"store": share.as_uri(), "layout": layout}}


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://").replace("%3D", "="))


def copies(lease: Lease, step: int) -> list[runs_pb2.Copy]:
    return list(lease.checkpoints[step].parts[0].copies)


def offered(lease: Lease) -> list[runs_pb2.Checkpoint]:
    return [lease.checkpoints[step] for step in sorted(lease.checkpoints, reverse=True)]


def copied(lease: Lease, step: int) -> bool:
    return step in lease.checkpoints and any(copy.store == "file" for copy in copies(lease, step))


async def test_checkpoints_and_result_go_to_a_shared_folder(
    fake: FakeCoordinator, hosts: MakeHost, share: Path
) -> None:
    await hosts(fake.address).start()
    lease = await fake.grant(spec(share, "framework", steps=6, save_every=2))
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and copied(lease, 6) and not fake.blobs
    output = lease.outcome.succeeded.output
    assert json.loads((path_of(output.uri) / "state.json").read_text())["step"] == 6
    attempt = f"0001-{'1' * 32}"
    run = share / "r/framework=hf"
    assert (run / "checkpoints" / attempt / "step_00000006/weights.bin").is_file()
    assert b"step 6 of 6" in (run / "logs" / attempt / "stdout.log").read_bytes()
    assert json.loads((run / "config" / attempt / "run.json").read_text())["name"] == "r"
    kinds = [json.loads(line)["kind"] for line in (share / "index.jsonl").read_bytes().splitlines()]
    assert kinds[-3:] == ["logs", "config", "output"] and set(kinds[:-3]) == {"checkpoints"}


async def test_another_host_goes_on_from_the_shared_folder(fake: FakeCoordinator, hosts: MakeHost, share: Path) -> None:
    first_host, second_host = hosts(fake.address), hosts(fake.address)
    await first_host.start()
    first = await fake.grant(spec(share, steps=9, save_every=2, fail_at=7))
    await fake.until(lambda: first.ended)
    assert copied(first, 6)
    await first_host.vanish()
    await second_host.start()
    second = await fake.grant(spec(share, steps=9, save_every=2), SECOND, attempt=2, checkpoints=offered(first))
    await fake.until(lambda: second.ended)
    assert second.started.checkpoint == first.checkpoints[6].name and second.steps() == [7, 8, 9]


@pytest.mark.parametrize("damage", ["bit", "gone"])
async def test_damage_in_the_store_is_mended_from_the_host(
    fake: FakeCoordinator, hosts: MakeHost, share: Path, gate: Gate, damage: str
) -> None:
    """The host's own copy is sound. A bit is found only by who reads it all: another copy, in relay://, stands in."""
    host, other = hosts(fake.address), hosts(fake.address)
    await host.start()
    first = await fake.grant(spec(share, steps=9, save_every=2, fail_at=7))
    await fake.until(lambda: first.ended)
    (copy,) = (copy for copy in copies(first, 6) if copy.store == "file")
    weights = path_of(copy.uri) / "weights.bin"
    whole = weights.read_bytes()
    if damage == "bit":
        for path in path_of(copy.uri).iterdir():
            fake.put(path.read_bytes())
        digest = first.checkpoints[6].parts[0].manifest_digest
        first.checkpoints[6].parts[0].copies.add(store="relay", uri=f"relay://{digest}")
        weights.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        await host.vanish()
        await other.start()
    else:
        weights.unlink()
    again = spec(share, steps=9, save_every=2, gate=gate.path)
    second = await fake.grant(again, SECOND, attempt=2, checkpoints=offered(first))
    await fake.until(lambda: "in file:// is right again" in second.messages())
    assert weights.read_bytes() == whole
    assert second.started.checkpoint == first.checkpoints[6].name
    assert ("has a damaged copy" in second.messages()) == (damage == "bit")


async def test_f11_a_store_that_is_away_holds_up_no_training_and_keeps_only_the_newest(
    fake: FakeCoordinator, hosts: MakeHost, share: Path, gate: Gate
) -> None:
    await asyncio.to_thread(share.rmdir)
    await hosts(fake.address).start()
    lease = await fake.grant(spec(share, steps=9, save_every=2, gate=gate.path))
    gate.let(8)
    await fake.until(lambda: 8 in lease.checkpoints)
    assert lease.steps() == list(range(1, 9)) and not any(copied(lease, step) for step in lease.checkpoints)
    await fake.until(lambda: any(beat.readings.transfers for beat in fake.heartbeats))
    await asyncio.to_thread(share.mkdir)
    gate.let(1)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and copied(lease, 8)
    assert sum(copied(lease, step) for step in lease.checkpoints) == 1


async def test_a_host_that_was_cut_off_offers_its_newest_checkpoint_on_return(
    fake: FakeCoordinator, hosts: MakeHost, share: Path, gate: Gate
) -> None:
    """It got further than the head meanwhile; nobody has resumed, so it counts."""
    async with Proxy([fake.address]) as proxy:
        host = hosts(proxy.address)
        await host.start()
        lease = await fake.grant(spec(share, steps=9, save_every=2, gate=gate.path))
        gate.let(2)
        await fake.until(lambda: copied(lease, 2))
        proxy.blackhole()
        gate.let(5)
        async with asyncio.timeout(60):
            while not (host.attempt("r") / "ckpt/step_00000006").is_dir():
                await fake.wait_for_anything()
        assert max(lease.checkpoints) == 2
        proxy.heal()
        await fake.until(lambda: copied(lease, 6))
        gate.let(2)
        await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and lease.steps() == list(range(1, 10))


async def test_a_cap_holds_for_all_transfers(fake: FakeCoordinator, hosts: MakeHost, share: Path) -> None:
    """Two seconds' worth: long enough to be seen on its way."""
    host = hosts(fake.address, "--transfer-limit", "1MiB/s")
    await host.start()
    lease = await fake.grant(spec(share, steps=2, save_every=2, size=2 * 1024 * 1024))
    await fake.until(lambda: any(beat.readings.transfers for beat in fake.heartbeats))
    (told,) = next(beat.readings.transfers for beat in fake.heartbeats if beat.readings.transfers)
    assert told.lease == lease.name and 0 < told.total_bytes - 2 * 1024 * 1024 < 1000
    await fake.until(lambda: lease.ended)
    assert copied(lease, 2)


@pytest.mark.parametrize("lease_stays", [True, False])
async def test_an_agent_that_is_killed_while_it_uploads_leaves_nothing(
    fake: FakeCoordinator, hosts: MakeHost, share: Path, gate: Gate, lease_stays: bool
) -> None:
    """The next agent resumes the upload if the lease is still held. In any case this host's next upload to the store
    removes what was left half made."""
    host = hosts(fake.address, "--transfer-limit", "2MiB/s")
    await host.start()
    lease = await fake.grant(spec(share, steps=3, save_every=2, size=6 * 1024 * 1024, gate=gate.path))
    gate.let(2)
    await fake.until(lambda: any(each.done_bytes for beat in fake.heartbeats for each in beat.readings.transfers))
    assert host.agent is not None
    if lease_stays:
        await host.end(signal.SIGKILL)
    else:
        await host.vanish()
        await fake.end(lease)
    left = {path.name for path in (share / ".relay").iterdir()}
    assert left
    await host.start()
    if lease_stays:
        await fake.until(lambda: copied(lease, 2))
        gate.let(1)
        await fake.until(lambda: lease.ended)
        assert lease.ended == "succeeded"
    else:
        second = await fake.grant(spec(share, steps=1, save_every=1), SECOND, attempt=2)
        await fake.until(lambda: second.ended)
    async with asyncio.timeout(60):
        while left & set(os.listdir(share / ".relay")):
            await fake.wait_for_anything()
