"""Checkpoints pushed into another store stand in for the first copy when that is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from relay.errors import CheckpointRemoved
from relayctl.client.artifacts import Blob, PullFailed
from relayctl.client.client import RelayClient
from relayctl.commands.exits import ExitCode
from relayctl.commands.pull import pull_checkpoint
from relayctl.commands.push import push_checkpoint
from relayctl.output.terminal import Terminal
from storage.manifest import Manifest, describe_folder
from tests.conftest import RunningCoordinator
from tests.relayctl.deployed import relayctl, run_file
from tests.seaweed import BUCKET, environment, objects

PLAIN = Terminal(interactive=False, attended=False, width=None)


@pytest.fixture(autouse=True)
def reached(deployment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_COORDINATOR", deployment)


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where to push to; a bucket's address and keys are in the environment."""
    if request.param == "relay":
        return "relay://"
    if request.param == "file":
        (tmp_path / "other").mkdir()
        return (tmp_path / "other").as_uri()
    for name, value in environment(request.getfixturevalue("s3")).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/pushed"


def trained(tmp_path: Path, name: str, *sets: str) -> Path:
    """A run that has ended, with checkpoints of steps 5 and 10 in a folder of its own; that folder."""
    share = tmp_path / "share"
    share.mkdir()
    options = [word for each in (f"checkpoint.store={share.as_uri()}", *sets) for word in ("--set", each)]
    relayctl("submit", run_file(tmp_path, name), *options, "-q")
    relayctl("wait", name, "--timeout", "60s")
    return share


def checkpoint(name: str, step: int) -> dict[str, object]:
    """As the coordinator lists it."""
    found = json.loads(relayctl("checkpoints", name, "-a", "-o", "json").stdout)["checkpoints"]
    return next(each for each in found if each["step"] == step)


def states(name: str, *, code: int = 0) -> list[str]:
    """What verifying every byte of step 5 found."""
    found = json.loads(relayctl("verify", f"{name}@5", "--deep", "-o", "json", code=code).stdout)["copies"]
    return [each["state"] for each in found]


@pytest.mark.parametrize("target", ["file", "s3", "relay"], indirect=True)
def test_what_was_pushed_is_pulled_when_the_first_copy_is_gone(
    target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    scheme = target.partition("://")[0]
    name = f"to-{scheme}"
    share = trained(tmp_path, name, "checkpoint.layout=framework", "env.DIGITS=3")  # content that no other run has
    said = relayctl("push", f"{name}@5", "--to", target).stdout
    stays = f"it is pinned, until: relayctl checkpoints unpin {name}@5"
    assert said == f"step 5 of {name} is in {target} now: 1 file, 3 B; {stays}\n"
    pushed = checkpoint(name, 5)
    assert (pushed["pinned"], pushed["pin_reason"]) == (True, f"pushed to {target}")
    assert "pinned" in relayctl("checkpoints", name).stdout and scheme in relayctl("checkpoints", name).stdout
    assert states(name) == ["not seen from here", "sound", "sound"]

    first = next(share.glob(f"{name}/framework=hf/checkpoints/*/step_00000005"))
    if scheme == "file":  # where an agent would have put it
        assert (tmp_path / "other" / first.relative_to(share) / "step").read_text() == "005"
    if scheme == "s3":
        assert f"pushed/{first.relative_to(share)}/step" in objects(request.getfixturevalue("s3"), "pushed")
    shutil.rmtree(first)
    assert states(name, code=1) == ["not seen from here", "damaged", "sound"]
    assert relayctl("pull", f"{name}@5", str(tmp_path / "back")).stdout.startswith("step 5: 1 file, 3 B, verified")
    assert (tmp_path / "back" / "step").read_text() == "005"


@pytest.mark.parametrize("target", ["file", "s3", "relay"], indirect=True)
def test_pushing_again_sends_nothing_and_changes_nothing(target: str, tmp_path: Path) -> None:
    name = f"twice-to-{target.partition('://')[0]}"
    share = trained(tmp_path, name)
    relayctl("push", f"{name}@best", "--to", target, code=2)  # it names no metric
    relayctl("push", f"{name}@latest", "--to", target)
    known = checkpoint(name, 10)
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "other").rglob("*")}
    shutil.rmtree(share)  # nothing is fetched, either
    said = relayctl("push", f"{name}@latest", "--to", target).stdout
    assert said == f"step 10 of {name} was in {target} already, nothing was sent; " + (
        f"it is kept: it was pinned before (pushed to {target})\n"
    )
    assert checkpoint(name, 10) == known
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "other").rglob("*")} == stored


def test_a_pin_that_is_there_keeps_its_reason_and_none_is_made_with_no_pin(tmp_path: Path) -> None:
    trained(tmp_path, "pinned")
    relayctl("checkpoints", "pin", "pinned@5", "--reason", "the paper's")
    assert "it was pinned before (the paper's)" in relayctl("push", "pinned@5", "--to", "relay://").stdout
    assert checkpoint("pinned", 5)["pin_reason"] == "the paper's"
    said = relayctl("push", "pinned@10", "--to", "relay://", "--no-pin").stdout
    assert said.endswith("it is kept for as long as the run file says\n")
    assert checkpoint("pinned", 10)["pinned"] is False


def test_what_cannot_be_pushed_is_one_line_and_leaves_no_pin(tmp_path: Path) -> None:
    share = trained(tmp_path, "stuck")
    gone = (tmp_path / "gone").as_uri()

    def assert_refused(point: str, to: str, code: int, *says: str) -> None:
        said = relayctl("push", point, "--to", to, code=code).stderr
        assert said.count("\n") == 1 and all(each in said for each in says), said

    assert_refused("nothing@5", "relay://", 4, "relayctl runs -a")
    assert_refused("stuck@7", "relay://", 4, "it has 5, 10")
    assert_refused("stuck", "relay://", 2, "RUN@STEP")
    assert_refused("stuck@5", "hf://me/model", 2, "relayctl export")
    assert_refused("stuck@5", "relay://elsewhere", 2, "just relay://")
    assert_refused("stuck@5", "http://bucket/x", 2, "is not a store", "s3://")
    assert_refused("stuck@5", "file://relative", 2, "absolute folder")
    assert_refused("stuck@5", "s3://key:secret@bucket/x", 2, "without keys")
    assert_refused("stuck@5", gone, 1, f"{gone} cannot be reached", "is not there")
    other = tmp_path / "other"
    shutil.copytree(share, other)
    for manifest in other.glob("stuck/**/manifest.json"):
        manifest.write_bytes(Manifest(()).to_bytes())
    assert_refused("stuck@5", other.as_uri(), 1, f"{other.as_uri()} does not take it", "other content")
    shutil.rmtree(share)
    (tmp_path / "third").mkdir()
    assert_refused("stuck@5", (tmp_path / "third").as_uri(), 1, "it cannot be fetched", share.as_uri())
    assert checkpoint("stuck", 5)["pinned"] is False
    down = relayctl("--coordinator", "127.0.0.1:9", "push", "stuck@5", "--to", "relay://", code=3).stderr
    assert "127.0.0.1:9 (Connection refused)" in down


# Without hosts: two nodes, and parts that never came.


@pytest.fixture
async def client(coordinator: RunningCoordinator) -> AsyncIterator[RelayClient]:
    async with RelayClient.connect(coordinator.address) as client:
        spec = {"version": "relay/v1", "name": "gang", "method": "command", "command": ["true"]}
        await client.create_run(spec)
        yield client


async def registered(
    coordinator: RunningCoordinator, client: RelayClient, folder: Path, nodes: int, *, complete: bool
) -> UUID:
    """A checkpoint of step 7, each node's part in the coordinator's own store; the lease's id."""
    lease = uuid4()
    connection = await asyncpg.connect(coordinator.database_url)
    try:
        await connection.execute(
            """INSERT INTO leases (id, run_id, attempt, state, policy, end_time)
               VALUES ($1, 'gang', 1, 'ended', 'continue', clock_timestamp())""",
            lease,
        )
        checkpoint_id = await connection.fetchval(
            """INSERT INTO checkpoints (run_id, lease_id, attempt, step, complete) VALUES ('gang', $1, 1, 7, $2)
               RETURNING id""",
            lease,
            complete,
        )
        for node in range(nodes):
            (folder / str(node)).mkdir(parents=True)
            (folder / str(node) / "rank").write_text(f"rank {node}")
            content = describe_folder(folder / str(node), step=7)
            blobs = [Blob.from_bytes((folder / str(node) / "rank").read_bytes()), Blob.from_bytes(content.to_bytes())]
            await client.artifacts.upload(dict.fromkeys(blobs, 0))
            await connection.execute(
                "INSERT INTO checkpoint_parts VALUES ($1, $2, $3, $4, 1)",
                checkpoint_id,
                node,
                content.digest,
                content.size,
            )
            await connection.execute(
                "INSERT INTO checkpoint_copies (checkpoint_id, node, uri, store) VALUES ($1, $2, $3, 'relay')",
                checkpoint_id,
                node,
                f"relay://{content.digest}",
            )
    finally:
        await connection.close()
    return lease


async def test_each_nodes_part_goes_to_its_own_place(
    coordinator: RunningCoordinator, client: RelayClient, tmp_path: Path
) -> None:
    lease = await registered(coordinator, client, tmp_path / "made", 2, complete=True)
    (tmp_path / "other").mkdir()
    to = (tmp_path / "other").as_uri()
    assert await push_checkpoint(client, PLAIN, "gang@7", to, pin=True) == ExitCode.OK
    [found] = await client.list_checkpoints("gang")
    place = f"{to}/gang/checkpoints/0001-{lease}/step_00000007"
    assert [[copy.uri for copy in part.copies if copy.store == "file"] for part in found.parts] == [
        [f"{place}/node_0000-of-0002"],
        [f"{place}/node_0001-of-0002"],
    ]
    shutil.rmtree(coordinator.artifact_dir / "blobs")
    (coordinator.artifact_dir / "blobs").mkdir()
    assert await pull_checkpoint(client, PLAIN, "gang@7", tmp_path / "back") == ExitCode.OK
    assert (tmp_path / "back/node_0001/rank").read_text() == "rank 1"
    assert await push_checkpoint(client, PLAIN, "gang@7", "relay://", pin=True) == ExitCode.OK  # it lacked them


async def test_a_checkpoint_that_is_not_whole_or_was_deleted_is_not_pushed(
    coordinator: RunningCoordinator, client: RelayClient, tmp_path: Path
) -> None:
    await registered(coordinator, client, tmp_path / "made", 1, complete=False)
    with pytest.raises(PullFailed, match="step 7 is not complete"):
        await push_checkpoint(client, PLAIN, "gang@7", tmp_path.as_uri(), pin=True)
    connection = await asyncpg.connect(coordinator.database_url)
    await connection.execute("UPDATE checkpoints SET complete = true, remove_time = now(), remove_reason = 'too old'")
    await connection.close()
    with pytest.raises(CheckpointRemoved, match="was deleted: too old"):
        await push_checkpoint(client, PLAIN, "gang@7", tmp_path.as_uri(), pin=False)
