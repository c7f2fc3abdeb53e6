"""A run with a store of its own resumes from there when its host dies, and its result is there, too."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from coordinator.database.tables import Base
from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind, Watched
from tests.hub.checker import find_differences
from tests.hub.server import serving
from tests.seaweed import BUCKET, environment, objects

pytestmark = [pytest.mark.slow, pytest.mark.rotating(3, of="end to end")]


async def survives(fleet: Fleet, tmp_path: Path, checkpoint: dict[str, Any]) -> pb.Run:
    """The host vanishes in the middle; another goes on, and the result is pulled."""
    scheme = str(checkpoint["store"]).partition("://")[0]
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=3, checkpoint=checkpoint)
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await run.checkpoint(3)
    await first.vanish()
    await fleet.host("b")
    await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and ended.attempts == 2 and ended.failures == 0
    assert fleet.conductor.steps_done_twice() == [4, 5]
    await run.has_one_curve(8)
    stored = {copy.store for each in await run.checkpoints() for part in each.parts for copy in part.copies}
    assert stored == {"host", scheme} and ended.output.uri.startswith(str(checkpoint["store"]))
    said = await fleet.relayctl("pull", "r", str(tmp_path / "out"))
    assert said.startswith("1 file") and "verified" in said
    assert not (tmp_path / "out/manifest.json").exists()
    return ended


async def test_two_hosts_share_a_folder(fleet: Fleet, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    await survives(fleet, tmp_path, {"store": share.as_uri(), "layout": "framework"})
    run = share / "r/framework=hf"
    assert {path.name for path in run.iterdir()} == {"checkpoints", "logs", "config", "output"}
    assert len(list((run / "checkpoints").iterdir())) == 2, "each attempt has a place of its own"
    assert not list((share / ".relay").glob("b-*"))


async def test_a_bucket_that_hosts_reach_by_their_environment(
    fleet: Fleet, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary in the host's environment is in no row, no log and no trainer (R6)."""
    canary = "canary" + hashlib.sha256(str(tmp_path).encode()).hexdigest()
    for name, value in {**environment(s3), "AWS_SECRET_ACCESS_KEY": canary}.items():
        monkeypatch.setenv(name, value)
    await survives(fleet, tmp_path, {"store": f"s3://{BUCKET}/runs"})
    assert {key.split("/")[1] for key in objects(s3, "runs")} == {"index.jsonl", "r"}
    assert canary not in await everything_in(fleet.deployment.database_url)
    for path in fleet.folder.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


async def test_a_repository_on_the_hub(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and result are tagged commits on the run's branch, and what the registry says of them is so."""
    with serving() as hub:
        for name, value in (hub.environ(fleet.folder / "cache") | {"HF_TOKEN": "hf_token"}).items():
            monkeypatch.setenv(name, value)
        ended = await survives(fleet, tmp_path, {"store": "hf://me/states"})
        points = await Watched("r", fleet.proxy.address).checkpoints()
        parts = [part for point in points for part in point.parts]
        known = [(copy.uri, part.manifest_digest) for part in parts for copy in part.copies if copy.store == "hf"]
        output = (ended.output.uri, ended.output.manifest_digest)
        assert len(known) == 3 and find_differences(hub.model("me/states"), [*known, output]) == []
        assert hub.model("me/states").private
        assert "sound" in await fleet.relayctl("verify", "r", "--deep")


async def test_a_host_goes_on_from_a_copy_that_a_person_pushed(
    fleet: Fleet, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host is gone, and so is the store of the run file: what was pushed elsewhere is what there is."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    share = tmp_path / "share"
    share.mkdir()
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=3, checkpoint={"store": share.as_uri()})
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await run.checkpoint(3)
    pushed = await fleet.relayctl("push", "r@3", "--to", f"s3://{BUCKET}/pushed")
    assert pushed.startswith("step 3 of r is in s3://") and [each.head for each in await run.checkpoints()] == [True]
    await first.vanish()
    shutil.rmtree(share / "r")
    await fleet.host("b")
    started = await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    assert "resumes at step 3" in started.text
    await fleet.conductor.allow(8)
    assert (await run.ended()).state == pb.Run.SUCCEEDED
    await run.has_one_curve(8)
    copied = [event async for event in run.history() if event.kind == Kind.COPIED and event.details["store"] == "s3"]
    assert [(event.lease, event.details["step"]) for event in copied] == [("", 3)]


async def everything_in(database_url: str) -> str:
    """Every row of every table, as text."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = [
            str(row[0])
            for table in Base.metadata.tables
            for row in await connection.fetch(f"SELECT t::text FROM {table} t")
        ]
    finally:
        await connection.close()
    assert rows
    return "\n".join(rows)


async def test_a_store_that_cannot_be_is_refused_at_submit(fleet: Fleet) -> None:
    for store, says in {
        "file://relative": "absolute folder that hosts share",
        "s3://key:secret@bucket/x": "hosts take those from their own environment",
        "relay://elsewhere": "just relay://",
    }.items():
        with pytest.raises(AssertionError, match=says):
            await fleet.submit_gated(steps=1, save_every=1, checkpoint={"store": store})
