"""A small deployment of real processes: two coordinator replicas behind a proxy, hosts that share no folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import yaml

from coordinator.database.tables import Base
from relay import errors
from relay.v1 import runs_pb2 as pb
from relay.v1 import runs_pb2_grpc
from relayctl.local.deployment import LocalCoordinator, LocalHost
from tests.conftest import delete
from tests.end_to_end.conductor import Conductor, Trainer, conducting, true_loss
from tests.history.checker import violations
from tests.history.index import Violation
from tests.history.record import Execution, Recorded, Row, Signal, Source, Step, Witness, recorded
from tests.proxy import Proxy

HERE = Path(__file__).parent
FILES = {"events": "events.jsonl", "agent": "agent.jsonl", "stdout": "stdout.log", "stderr": "stderr.log"}
Kind = pb.RunEvent.Kind


@dataclass(slots=True)
class Fleet:
    """What a test sees and breaks."""

    folder: Path
    deployment: Deployment
    proxy: Proxy
    conductor: Conductor
    hosts: dict[str, LocalHost] = field(default_factory=dict)  #: by folder
    submitted: dict[str, str] = field(default_factory=dict)  #: run by request id, where a test has chosen the latter
    steady: bool = True  #: no test has set the database's clock

    async def host(self, name: str, *arguments: str, via: str = "") -> LocalHost:
        """A new host, welcomed; `via` is the address of a line of its own."""
        host = self.new_host(name, *arguments, via=via)
        await host.start()
        return host

    def new_host(
        self, name: str, *arguments: str, via: str = "", within: Sequence[str] = (), folder: str = ""
    ) -> LocalHost:
        """One that is not started yet. A clone of another has its name, and a folder of its own."""
        place = folder or name
        host = LocalHost(name, self.folder / place, via or self.proxy.address, arguments, within=within)
        self.hosts[place] = host
        return host

    async def relayctl(self, *arguments: str, expect: int = 0) -> str:
        """What `relayctl` prints on stdout; its exit code must be the expected one."""
        code, out, err = await self.relayctl_raw(*arguments)
        assert code == expect, f"relayctl {' '.join(arguments)}: {code}\n{out}\n{err}"
        return out

    async def relayctl_raw(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relayctl", "--coordinator", self.proxy.address, *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=self.folder,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def submit(self, spec: Mapping[str, Any], name: str = "r") -> Watched:
        """Submits a run file as a user does."""
        folder = self.folder / "submitter"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"version": "relay/v1", "name": name, **spec}))
        await self.relayctl("submit", str(path))
        return Watched(name, self.proxy.address)

    async def submit_gated(
        self, steps: int, save_every: int, name: str = "r", *, padding: int = 0, **more: Any
    ) -> Watched:
        """Submits a run of the gated trainer; each step's line has `padding` more bytes."""
        spec = self.gated(steps, save_every, padding=padding)
        return await self.submit({**spec, **more}, name)

    def gated(self, steps: int, save_every: int, *, padding: int = 0) -> dict[str, Any]:
        """The run file of a gated trainer, which lies beside it."""
        folder = self.folder / "submitter"
        folder.mkdir(exist_ok=True)
        (folder / "gated_trainer.py").write_bytes((HERE / "gated_trainer.py").read_bytes())
        env = {"GATE": self.conductor.address, "STEPS": str(steps), "SAVE_EVERY": str(save_every)}
        return {
            "method": "command",
            "command": [sys.executable, "gated_trainer.py"],
            "files": ["gated_trainer.py"],
            "env": {**env, "PADDING": str(padding)},
            "lifecycle": {"max_attempts": 3},
        }

    @contextlib.contextmanager
    def frozen(self, host: LocalHost) -> Iterator[None]:
        """The whole host stands still: agent, shims and trainers."""
        pids = list(host.processes())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for trainer in self.conductor.trainers:
            trainer.frozen = trainer.frozen or trainer.pid in pids
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # one that had just been about to end
                    os.kill(pid, signal.SIGCONT)

    async def is_sound(self) -> None:
        """Asserts that S1 to S10 have held so far."""
        broken = await self.broken()
        assert not broken, "\n".join(map(str, broken))

    async def broken(self) -> list[Violation]:
        """Promises not kept, by what was recorded and what was truly done."""
        found = await recorded(self.deployment.database_url)
        return violations(found, await asyncio.to_thread(self._witness, found))

    def _witness(self, found: Recorded) -> Witness:
        """From the conductor and the hosts' disks. Blocking."""
        leases = {str(row["id"])[:8]: row for row in found["leases"]}
        called = [(trainer, leases[trainer.lease]) for trainer in self.conductor.trainers if trainer.lease in leases]
        files = dict(self._files(found, leases))
        ids = {short: str(row["id"]) for short, row in leases.items()}
        done = {
            (trainer.run, ids[trainer.lease], step) for trainer, step in self.conductor.steps if trainer.lease in ids
        }
        for trainer, _ in called:  # one that is killed between its line and its word to the conductor did the step
            lease_id = ids[trainer.lease]
            done |= {(trainer.run, lease_id, step) for step in _steps_in(files, lease_id)}
        return Witness(
            steps=[Step(run, lease, step, true_loss(step)) for run, lease, step in sorted(done)],
            executions=[self._execution(trainer, lease, found["places"]) for trainer, lease in called],
            signals=[Signal(str(lease["id"]), "SIGTERM") for trainer, lease in called for _ in range(trainer.terms)],
            files=files,
            submitted=self.submitted,
            steady=self.steady,
        )

    def _execution(self, trainer: Trainer, lease: Row, places: Sequence[Row]) -> Execution:
        host = next((name for name, host in self.hosts.items() if _attempts(host, trainer.run, trainer.lease)), "")
        (place,) = (place for place in places if place["lease_id"] == lease["id"])
        stay = (host, trainer.began, trainer.ended, place["node"], tuple(place["slots"]))
        return Execution(trainer.run, str(lease["id"]), lease["policy"], *stay, excused=trainer.frozen)

    def _files(self, found: Recorded, leases: Mapping[str, Row]) -> Iterator[tuple[Source, bytes]]:
        """Read after the snapshot: they only grow. A host that left an attempt alone may have no file of it."""
        for place in found["places"]:
            lease = leases[str(place["lease_id"])[:8]]
            hosts = [host for host in self.hosts.values() if host.name == place["agent"]]
            for folder in (each for host in hosts for each in _attempts(host, lease["run_id"], str(lease["id"]))):
                for source, name in FILES.items():
                    if (folder / name).exists():
                        yield (str(lease["id"]), place["node"], source), (folder / name).read_bytes()


def _steps_in(files: Mapping[Source, bytes], lease: str) -> set[int]:
    """Steps that a gated trainer has written down as done; the last line may be half."""
    whole = [data[: data.rfind(b"\n") + 1] for (of, _, name), data in files.items() if (of, name) == (lease, "events")]
    lines = (json.loads(line) for data in whole for line in data.splitlines())
    return {line["step"] for line in lines if "train_loss" in line.get("values", ())}


def _attempts(host: LocalHost, run: str, lease: str) -> list[Path]:
    """The attempt's folder on this host, where it has one."""
    return list((host.root / "runs" / run / "attempts").glob(f"*-{lease[:8]}"))


@dataclass(slots=True)
class Watched:
    """A run as a generated client sees it."""

    name: str
    address: str

    async def history(self) -> AsyncIterator[pb.RunEvent]:
        """Every event of the run once and in order, across replicas and cuts, until the run ends."""
        seen = 0
        while True:
            try:
                async with grpc.aio.insecure_channel(self.address) as channel:
                    request = pb.WatchRunRequest(name=f"runs/{self.name}", after_sequence=seen)
                    async for update in runs_pb2_grpc.RunsStub(channel).WatchRun(request):
                        if update.WhichOneof("update") == "event":
                            assert update.event.sequence == seen + 1
                            seen = update.event.sequence
                            yield update.event
                    return
            except grpc.aio.AioRpcError as error:
                if not errors.is_transient(error):
                    raise

    async def until(self, fact: Callable[[pb.RunEvent], bool]) -> pb.RunEvent:
        """The first event for which it is true."""
        async for event in self.history():
            if fact(event):
                return event
        raise AssertionError(f"{self.name} ended as {pb.Run.State.Name((await self.get()).state)} without it")

    async def checkpoint(self, step: int, *, attempt: int | None = None, copied: bool = True) -> None:
        """Waits until a checkpoint of this step (of this attempt) is head, and copied off its host."""
        kind = Kind.COPIED if copied else Kind.CHECKPOINT
        await self.until(lambda e: e.kind == kind and e.details["step"] == step and attempt in (None, e.attempt))

    async def ended(self) -> pb.Run:
        """The run once it has ended."""
        async for _ in self.history():
            pass
        return await self.get()

    async def get(self) -> pb.Run:
        """The run now."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            request = pb.GetRunRequest(name=f"runs/{self.name}")
            return await runs_pb2_grpc.RunsStub(channel).GetRun(request, wait_for_ready=True, timeout=90)

    async def attempts(self) -> list[pb.Attempt]:
        """All attempts, oldest first."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            request = pb.ListAttemptsRequest(name=f"runs/{self.name}")
            return list((await runs_pb2_grpc.RunsStub(channel).ListAttempts(request, timeout=90)).attempts)

    async def checkpoints(self, *, superseded: bool = False) -> list[pb.Checkpoint]:
        """All checkpoints in order."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            request = pb.ListCheckpointsRequest(
                name=f"runs/{self.name}", include_superseded=superseded, include_removed=superseded
            )
            return list((await runs_pb2_grpc.RunsStub(channel).ListCheckpoints(request, timeout=90)).checkpoints)

    async def curve(self, *, superseded: bool = False) -> dict[str, list[tuple[int, float]]]:
        """Every point of every metric, in the order of arrival."""
        points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        async with grpc.aio.insecure_channel(self.address) as channel:
            request = pb.ReadMetricsRequest(name=f"runs/{self.name}", include_superseded=superseded)
            async for chunk in runs_pb2_grpc.RunsStub(channel).ReadMetrics(request, timeout=90):
                points[chunk.metric] += zip(chunk.steps, chunk.values, strict=True)
        return points

    async def has_one_curve(self, steps: int) -> None:
        """Asserts that the curve of a gated trainer has every step once and in order, each with its true loss."""
        curve = await self.curve()
        assert curve["train_loss"] == [(step, true_loss(step)) for step in range(1, steps + 1)]
        assert [step for step, _ in curve["learning_rate"]] == list(range(1, steps + 1))


@dataclass(frozen=True, slots=True)
class Deployment:
    """Two replicas on one database and one artifact store, which serve one test after another."""

    folder: Path
    database_url: str
    replicas: list[LocalCoordinator]

    @property
    def artifacts(self) -> Path:
        """Where the replicas keep blobs."""
        return self.folder / "artifacts"

    async def ready(self) -> None:
        """As new: both replicas serve, and the database knows no run and no host. They keep nothing in memory."""
        await asyncio.gather(*(replica.start() for replica in self.replicas if not replica.alive))
        connection = await asyncpg.connect(self.database_url)
        try:
            await delete(connection, [table for table in Base.metadata.tables if table != "deployment"])
            await connection.execute("UPDATE deployment SET lapses_after = NULL, stop_grants_after = NULL")
        finally:
            await connection.close()


@asynccontextmanager
async def deployed(folder: Path, database_url: str, timing: str = "test") -> AsyncIterator[Deployment]:
    """A deployment in a folder of its own; its processes are gone afterwards."""
    store = ("--artifact-dir", str(folder / "artifacts"))
    names = ("replica-1", "replica-2")
    replicas = [LocalCoordinator(folder / name, name, database_url, timing, arguments=store) for name in names]
    try:
        yield Deployment(folder, database_url, replicas)
    finally:
        await asyncio.gather(*(replica.stop() for replica in replicas))


@asynccontextmanager
async def fleet_of(deployment: Deployment, folder: Path) -> AsyncIterator[Fleet]:
    """The deployment behind a proxy of its own, and hosts in `folder`, of which nothing is left afterwards."""
    await deployment.ready()
    upstreams = [replica.address for replica in deployment.replicas]
    async with Proxy(upstreams) as proxy, conducting(folder / "gate") as conductor:
        fleet = Fleet(folder, deployment, proxy, conductor)
        try:
            yield fleet
            proxy.heal()
            await fleet.is_sound()
        finally:
            await asyncio.gather(*(host.vanish() for host in fleet.hosts.values()))
