"""A coordinator that is killed again and again while it takes checkpoints and collects: registry and store agree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import obstore
import pytest
from grpc import aio

from coordinator.artifacts.base import Artifacts
from coordinator.artifacts.bucket import BucketArtifacts, open_bucket
from coordinator.artifacts.folder import FolderArtifacts
from coordinator.artifacts.garbage_collection import Collector, find_missing, read_file_digests
from coordinator.background.garbage_collection import collect_once
from coordinator.database.connections import Database
from coordinator.store import retention as store
from relay.errors import BlobUnknown, InputMissing, OffsetGap, from_rpc, is_transient
from relay.v1 import agents_pb2 as pb
from relay.v1 import artifacts_pb2, runs_pb2
from relay.v1.agents_pb2_grpc import AgentsStub
from relay.v1.artifacts_pb2_grpc import ArtifactsStub
from relay.v1.runs_pb2_grpc import RunsStub
from storage.manifest import Manifest, ManifestFile, digest_bytes
from tests.coordinator.agent_client import ScriptedAgent
from tests.coordinator.fleet import COMMAND
from tests.seaweed import environment, seaweed
from tests.tiers import Tier

T = TypeVar("T")
#: How often the coordinator is killed on a commit, and in the thorough tier.
KILLS = (3, 50)
SIZE = 3_000_000
CHUNK = 500_000


Names = Callable[[], set[str]]  #: digests of the blobs that lie in a store


async def find_differences(db: Database, artifacts: Artifacts, lying: Names) -> list[str]:
    """Where the registry and the store differ, in words."""
    async with db.connection() as conn:
        named = await store.read_referenced_blobs(conn)
    found = [f"{digest} lacks {lacking}" for digest in named.manifests for lacking in find_missing(artifacts, digest)]
    assert await collect_once(db, Collector(artifacts), grace=-1e6) is not None
    wanted = {*named.manifests, *named.blobs}
    for digest in named.manifests:
        with contextlib.suppress(BlobUnknown):
            wanted |= read_file_digests(artifacts, digest)
    return found + [f"{digest} is in the store, and nothing names it" for digest in lying() - wanted]


@dataclass
class Kind:
    """A store as this test needs it."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    opened: Callable[[], Artifacts]
    lying: Names
    lose: Callable[[str], None]  #: somebody deletes a blob, by digest


def in_a_folder(folder: Path) -> Kind:
    root = folder / "artifacts"

    def path(digest: str) -> Path:
        return root / "blobs" / digest[7:9] / digest[7:]

    def lying() -> set[str]:
        assert not list((root / "swept").iterdir())
        return {f"sha256:{each.name}" for each in (root / "blobs").glob("??/*")}

    return Kind(
        ("--artifact-dir", str(root)),
        {},
        lambda: FolderArtifacts(root, limit=1 << 40),
        lying,
        lambda digest: path(digest).unlink(),
    )


def in_a_bucket(folder: Path, endpoint: str) -> Kind:
    url = "s3://relay/kills"

    def keys(prefix: str) -> list[str]:
        return [meta["path"] for batch in obstore.list(open_bucket(url), prefix) for meta in batch]

    def lose(digest: str) -> None:
        obstore.delete(open_bucket(url), keys(f"blobs/{digest[7:9]}/{digest[7:]}/"))

    return Kind(
        ("--artifact-store", url, "--artifact-dir", str(folder / "artifacts")),
        environment(endpoint),
        lambda: BucketArtifacts(url, folder / "looking", limit=1 << 40, grace=1e6),
        lambda: {f"sha256:{key.split('/')[-2]}" for key in keys("blobs/")},
        lose,
    )


@pytest.fixture(params=["folder", "bucket"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    with contextlib.ExitStack() as stack:
        if request.param == "folder":
            made = in_a_folder(tmp_path)
        else:
            made = in_a_bucket(tmp_path, stack.enter_context(seaweed(tmp_path / "seaweed")))
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@dataclass
class Serving:
    """A coordinator process on one address, killed and started again."""

    port: int
    database_url: str
    folder: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "coordinator", "serve", "--listen", f"127.0.0.1:{self.port}"),
            *("--database-url", self.database_url, "--data-dir", str(self.folder / "data")),
            *("--artifact-grace", "2s", *self.arguments),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def up(self) -> None:
        """Until it takes calls."""
        async with aio.insecure_channel(f"127.0.0.1:{self.port}") as channel, asyncio.timeout(60):
            await channel.channel_ready()


@contextmanager
def serving(database_url: str, folder: Path, arguments: tuple[str, ...]) -> Iterator[Serving]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Serving(port, database_url, folder, arguments)
    made.start()
    try:
        yield made
    finally:
        made.kill()


@dataclass
class Publisher:
    """Publishes one checkpoint after the other, as an agent does: it insists."""

    agents: AgentsStub
    artifacts: ArtifactsStub
    lease: str
    dice: random.Random
    step: int = 0

    async def run(self) -> None:
        while True:
            self.step += 1
            await self.publish([self.dice.randbytes(SIZE), bytes([self.dice.randrange(8)]) * SIZE])

    async def publish(self, contents: list[bytes]) -> None:
        files = tuple(ManifestFile(f"{i}.bin", len(data), digest_bytes(data)) for i, data in enumerate(contents))
        manifest = Manifest(files, self.step)
        request = pb.RegisterCheckpointRequest(
            lease=self.lease, step=self.step, manifest_digest=manifest.digest, size=1, files=len(files),
            copies=[runs_pb2.Copy(store="host", uri="host://agents/a")],
            required_cursors=[pb.Cursor(source="events", offset=0)],
        )  # fmt: skip
        name = (
            await insisting(lambda: self.agents.RegisterCheckpoint(request, timeout=90, wait_for_ready=True))
        ).checkpoint.name
        copy = runs_pb2.Copy(store="relay", uri=f"relay://{manifest.digest}")
        added = pb.AddCopyRequest(lease=self.lease, checkpoint=name, copy=copy)
        while True:
            for data in (*contents, manifest.to_bytes()):
                await insisting(lambda data=data: self.put(data))  # type: ignore[misc]
            try:
                await insisting(lambda: self.agents.AddCopy(added, timeout=90, wait_for_ready=True))
                return
            except aio.AioRpcError as error:
                assert isinstance(from_rpc(error), InputMissing)  # it took too long: what was there has been swept

    async def put(self, data: bytes) -> None:
        digest = digest_bytes(data)
        (stat,) = (
            await self.artifacts.StatBlobs(
                artifacts_pb2.StatBlobsRequest(digests=[digest]), timeout=90, wait_for_ready=True
            )
        ).blobs
        if not stat.complete:
            await self.artifacts.PutBlob(_requests(data, digest, stat.offset), timeout=90, wait_for_ready=True)


async def _requests(data: bytes, digest: str, offset: int) -> AsyncIterator[artifacts_pb2.PutBlobRequest]:
    header = artifacts_pb2.PutBlobHeader(digest=digest, size=len(data), offset=offset)
    yield artifacts_pb2.PutBlobRequest(header=header)
    for at in range(offset, len(data), CHUNK):
        yield artifacts_pb2.PutBlobRequest(chunk=data[at : at + CHUNK])


async def insisting(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except aio.AioRpcError as error:
            if not is_transient(error) and not isinstance(from_rpc(error), OffsetGap):
                raise


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_registry_and_store_agree_after_many_kills(
    database_url: str, tmp_path: Path, db: Database, kind: Kind, tier: Tier
) -> None:
    dice = tier.random(4)
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
    with serving(database_url, tmp_path, kind.arguments) as coordinator:
        await coordinator.up()
        async with aio.insecure_channel(f"127.0.0.1:{coordinator.port}", options=options) as channel:
            agent = ScriptedAgent(AgentsStub(channel), "a")
            await agent.hello()
            request = runs_pb2.CreateRunRequest()
            request.spec.update({**COMMAND, "name": "r", "checkpoint": {"keep": {"last": 2}}})
            await RunsStub(channel).CreateRun(request)
            lease = (await agent.take()).lease
            await agent.start(lease)
            publisher = Publisher(AgentsStub(channel), ArtifactsStub(channel), lease, dice)
            publishing = asyncio.create_task(publisher.run())
            for _ in range(tier.pick(*KILLS)):
                await coordinator.up()
                await asyncio.wait([publishing], timeout=dice.random() * 0.6)
                assert not publishing.done(), publishing.exception()
                coordinator.kill()
                coordinator.start()
            await coordinator.up()
            reached = publisher.step
            async with asyncio.timeout(60):
                while publisher.step < reached + 2:  # it goes on
                    await asyncio.sleep(0)
                    assert not publishing.done(), publishing.exception()
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            agent.vanish()
    assert publisher.step > 2
    async with db.connection() as conn:
        named = await store.read_referenced_blobs(conn)
    assert 1 <= len(named.manifests) <= 3
    artifacts = kind.opened()
    assert await find_differences(db, artifacts, kind.lying) == []
    # and what does not agree is found
    file = min(read_file_digests(artifacts, max(named.manifests)))
    for lost in (file, max(named.manifests)):
        kind.lose(lost)
        assert any(f"lacks {lost}" in each for each in await find_differences(db, kind.opened(), kind.lying))
