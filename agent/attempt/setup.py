"""From an assignment to a trainer that can be started: inputs, checkpoint, the attempt's first write.

What goes wrong on the way is the host's or the store's doing, not the run's: a `Fault`, and the run goes elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.attempt.inputs import Cache
from agent.attempt.launch import Launch, launch
from agent.attempt.start_attempt import FirstWrite
from agent.checkpoints.removing import Removals
from agent.checkpoints.resume import Resume, Unreachable, choose
from agent.cleanup import Begun
from agent.coordinator_client import Contact, Coordinator
from agent.events.spool import Spool
from agent.folder import AttemptFolder, RunFolder
from agent.hub.context import HubMeans
from agent.shim_client.jobs import Job
from agent.shim_client.shims import Shim, ShimError, Shims
from agent.stores.blobs import Blobs
from agent.stores.publishing import Publishing, store_of
from agent.stores.retry import Patience
from agent.stores.transfers import Transfers
from agent.wire import Assignment
from relay.errors import LeaseLost, RelayError
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc, runs_pb2
from runfile import RunFile
from storage.base import Damaged, Store, StoreRefused
from storage.manifest import ManifestError
from storage.rate_limit import Pace

log = logging.getLogger(__name__)

SPARE = 256 << 20  #: bytes of the disk that a run does not count on: events, logs, whatever else is written here


class Fault(Exception):
    """This host cannot run the attempt; another one might."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every attempt on this host works with."""

    agent: str  #: `agents/{agent}`
    root: Path
    runtime_dir: Path
    python: str
    gpus: bool
    orphan_limit: float
    environment: Mapping[str, str]
    stub: agents_pb2_grpc.AgentsStub
    coordinator: Coordinator
    contact: Contact
    spool: Spool
    blobs: Blobs
    stores: Mapping[str, Store]
    cache: Cache
    begun: Begun
    removals: Removals
    shims: Shims
    now: Callable[[], float]  #: CLOCK_BOOTTIME: also counts while the host sleeps
    wall: Callable[[], float]  #: seconds since the epoch, for people
    hub: HubMeans | None = None
    pace: Pace = field(default_factory=Pace)
    transfers: Transfers = field(default_factory=Transfers)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be given with every call."""
        return self.coordinator.metadata

    def run_folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.root, run_id)

    def attempt_folder(self, lease: str, attempt: int) -> AttemptFolder:
        """Of any lease, this host's or another's: then nothing is there."""
        _, run_id, _, lease_id = lease.split("/")
        return self.run_folder(run_id).attempt(attempt, lease_id)


async def fetch(means: Means, assignment: Assignment, folder: AttemptFolder) -> None:
    """Create the attempt's folder and put the run's inputs into it."""
    await _check_room(means, assignment)
    try:
        await asyncio.to_thread(_create, means.begun, assignment, folder)
        await means.cache.place(means.blobs, assignment.message.inputs, folder.work)
    except (Damaged, ManifestError, RelayError) as error:
        raise Fault("INPUT_UNAVAILABLE", str(error)) from error
    except OSError as error:
        raise _disk(error) from error


async def _check_room(means: Means, assignment: Assignment) -> None:
    """Fault when the run's inputs and the checkpoint it goes on from will not fit, even with what can be freed."""
    inputs = sum(each.size for each in assignment.message.inputs)
    checkpoint = _to_be_fetched(means, assignment)
    for freed in (False, True):
        free = (await asyncio.to_thread(means.removals.room, means.root)).free
        if inputs + checkpoint + SPARE <= free:
            return
        if not freed:
            await means.removals.carry_out(scarce=True)
    parts = f"{_size(inputs)} of inputs, {_size(checkpoint)} of its checkpoint"
    usable = f"{_size(max(0, free - SPARE))} can be used on {means.root}"
    raise Fault("DISK_FULL", f"it needs {_size(inputs + checkpoint)} ({parts}), and {usable}")


def _to_be_fetched(means: Means, assignment: Assignment) -> int:
    """Bytes of the newest checkpoint's part, unless it lies here."""
    for checkpoint in assignment.message.checkpoints[:1]:
        for part in (part for part in checkpoint.parts if part.node == assignment.node):
            here = any(copy.uri == f"host://{means.agent}" for copy in part.copies)
            return 0 if here else part.size
    return 0


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _create(begun: Begun, assignment: Assignment, folder: AttemptFolder) -> None:
    begun.add(assignment.lease_id, folder)
    folder.create()
    assignment.save(folder.assignment)
    folder.run_file.write_text(assignment.message.spec_json)


def publishing(means: Means, assignment: Assignment, run: RunFile, patience: Patience) -> Publishing:
    """Where this attempt's checkpoints and result go."""
    try:
        store = store_of(run, means.stores, writer=means.agent.removeprefix("agents/"), pace=means.pace)
    except StoreRefused as error:
        raise Fault("STORE_UNUSABLE", str(error)) from error
    return Publishing(
        lease=assignment.lease,
        store=store,
        patience=patience,
        transfers=means.transfers,
    )


async def choose_checkpoint(
    means: Means, assignment: Assignment, folder: AttemptFolder, first_write: FirstWrite, patience: Patience
) -> Resume:
    """The checkpoint to go on from, and the attempt's first write: that this is so. Raises LeaseLost."""

    def here(checkpoint: runs_pb2.Checkpoint) -> Path:
        return means.attempt_folder(checkpoint.lease, checkpoint.attempt).checkpoint(checkpoint.step)

    try:
        chosen = await choose(
            assignment.message.checkpoints,
            assignment.node,
            host=f"host://{means.agent}",
            here=here,
            stores=means.stores,
            scratch=folder.resume,
            patience=patience,
        )
    except (RelayError, Unreachable) as error:
        raise Fault("CHECKPOINT_UNAVAILABLE", str(error)) from error
    except OSError as error:
        raise _disk(error) from error
    request = pb.StartAttemptRequest(
        lease=assignment.lease, node=assignment.node, checkpoint=chosen.checkpoint, skipped=chosen.skipped
    )
    try:
        await first_write.say(request)
    except LeaseLost:
        raise
    except OSError as error:
        raise _disk(error) from error
    except RelayError as refusal:  # what it was to resume from is no longer on the curve: the next grant knows
        raise Fault("START_REFUSED", str(refusal)) from refusal
    for skipped in chosen.skipped:
        log.warning("checkpoint=skipped name=%s reason=%r", skipped.checkpoint, skipped.reason)
    return chosen


async def start(
    means: Means, assignment: Assignment, run: RunFile, folder: AttemptFolder, chosen: Resume, trust: float | None
) -> Shim:
    """The trainer, under a shim of its own."""
    made = _launch(means, assignment, run, folder, chosen)
    job = Job(
        lease=assignment.lease,
        argv=made.argv,
        cwd=made.cwd,
        env=made.env,
        folder=folder.path,
        policy="stop" if assignment.stops_on_disconnect else "continue",
        trust=trust,
        orphan_limit=means.orphan_limit,
    )
    try:
        await asyncio.to_thread(made.cwd.mkdir, parents=True, exist_ok=True)
        shim = await means.shims.start(job)
    except ShimError as error:
        raise Fault("SHIM_LOST", str(error)) from error
    except OSError as error:
        raise _disk(error) from error
    log.info("trainer=started lease=%s pid=%s resumed_from=%r", assignment.lease, shim.record.pid, chosen.checkpoint)
    return shim


def _launch(means: Means, assignment: Assignment, run: RunFile, folder: AttemptFolder, chosen: Resume) -> Launch:
    return launch(
        assignment,
        run,
        folder,
        resume=chosen.folder,
        python=means.python,
        gpus=means.gpus,
        inherited=means.environment,
    )


def _disk(error: OSError) -> Fault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Fault(
        "DISK_FULL" if full else "HOST_FAULT", f"{error.filename or ''} {os.strerror(error.errno or 0)}".strip()
    )
