"""From an assignment to a trainer that can be started: inputs, checkpoint, the attempt's first write.

What fails here is the fault of the host or a store, not of the run: a `HostFault`, and the run is granted elsewhere.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.attempt.launch import LaunchSpec, build_launch
from agent.attempt.start_attempt import StartReport
from agent.checkpoints.resume import ResumePoint, StoresUnreachable, choose_checkpoint
from agent.cleanup import OpenAttempts
from agent.context import AttemptContext
from agent.errors import HostFault, disk_fault
from agent.folder import AttemptFolder
from agent.shim_client.jobs import Job
from agent.shim_client.shims import Shim, ShimError
from agent.stores.publishing import AttemptStore, open_run_store
from agent.stores.retry import StoreRetry
from agent.wire import Assignment
from relay.errors import LeaseLost, RelayError
from relay.logs import get_logger
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2
from runfile import RunFile
from storage.base import DamagedCopy, StoreRefused
from storage.manifest import ManifestError

log = get_logger(__name__)

SPARE = 256 << 20  #: bytes of the disk that are kept free of inputs and checkpoints, for events, logs and the like


async def fetch_inputs(context: AttemptContext, assignment: Assignment, folder: AttemptFolder) -> None:
    """Create the attempt's folder and put the run's inputs into it."""
    await _check_room(context, assignment)
    try:
        await asyncio.to_thread(_create_folder, context.open_attempts, assignment, folder)
        await context.cache.place_inputs(context.blobs, assignment.message.inputs, folder.work)
    except (DamagedCopy, ManifestError, RelayError) as error:
        raise HostFault("INPUT_UNAVAILABLE", str(error)) from error
    except OSError as error:
        raise disk_fault(error) from error


async def _check_room(context: AttemptContext, assignment: Assignment) -> None:
    """Raise HostFault when the inputs and the checkpoint to resume from do not fit, even with what can be freed."""
    inputs = sum(each.size for each in assignment.message.inputs)
    checkpoint = _measure_download(context, assignment)
    for freed in (False, True):
        free = (await asyncio.to_thread(context.remover.measure_disk, context.root)).free
        if inputs + checkpoint + SPARE <= free:
            return
        if not freed:
            await context.remover.remove_scheduled(disk_low=True)
    parts = f"{_format_size(inputs)} of inputs, {_format_size(checkpoint)} of its checkpoint"
    usable = f"{_format_size(max(0, free - SPARE))} can be used on {context.root}"
    raise HostFault("DISK_FULL", f"it needs {_format_size(inputs + checkpoint)} ({parts}), and {usable}")


def _measure_download(context: AttemptContext, assignment: Assignment) -> int:
    """Return how many bytes of the newest checkpoint's part must be downloaded; 0 when it lies on this host."""
    for checkpoint in assignment.message.checkpoints[:1]:
        for part in (part for part in checkpoint.parts if part.node == assignment.node):
            here = any(copy.uri == f"host://{context.agent}" for copy in part.copies)
            return 0 if here else part.size
    return 0


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _create_folder(begun: OpenAttempts, assignment: Assignment, folder: AttemptFolder) -> None:
    begun.add(assignment.lease_id, folder)
    folder.create()
    assignment.save(folder.assignment)
    folder.run_file.write_text(assignment.message.spec_json)


def open_store(context: AttemptContext, assignment: Assignment, run: RunFile, retry: StoreRetry) -> AttemptStore:
    """Return the store for this attempt's checkpoints and result."""
    try:
        store = open_run_store(
            run, context.stores, writer=context.agent.removeprefix("agents/"), rate_limit=context.rate_limit
        )
    except StoreRefused as error:
        raise HostFault("STORE_UNUSABLE", str(error)) from error
    return AttemptStore(
        lease=assignment.lease,
        store=store,
        retry=retry,
        transfers=context.transfers,
    )


async def choose_and_report(
    context: AttemptContext, assignment: Assignment, folder: AttemptFolder, start_report: StartReport, retry: StoreRetry
) -> ResumePoint:
    """Choose the checkpoint to resume from, and report it as the attempt's first write. Raises LeaseLost."""

    def here(checkpoint: runs_pb2.Checkpoint) -> Path:
        return context.attempt_folder(checkpoint.lease, checkpoint.attempt).checkpoint(checkpoint.step)

    try:
        chosen = await choose_checkpoint(
            assignment.message.checkpoints,
            assignment.node,
            host=f"host://{context.agent}",
            here=here,
            stores=context.stores,
            scratch=folder.resume,
            retry=retry,
        )
    except (RelayError, StoresUnreachable) as error:
        raise HostFault("CHECKPOINT_UNAVAILABLE", str(error)) from error
    except OSError as error:
        raise disk_fault(error) from error
    request = pb.StartAttemptRequest(
        lease=assignment.lease, node=assignment.node, checkpoint=chosen.checkpoint, skipped=chosen.skipped
    )
    try:
        await start_report.send(request)
    except LeaseLost:
        raise
    except OSError as error:
        raise disk_fault(error) from error
    except RelayError as refusal:  # what it was to resume from is no longer on the curve: the next grant knows
        raise HostFault("START_REFUSED", str(refusal)) from refusal
    for skipped in chosen.skipped:
        log.warning("checkpoint skipped", checkpoint=skipped.checkpoint, reason=skipped.reason)
    return chosen


async def start_trainer(
    context: AttemptContext,
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    chosen: ResumePoint,
    trust: float | None,
) -> Shim:
    """Start the trainer under a shim of its own."""
    made = _launch(context, assignment, run, folder, chosen)
    job = Job(
        lease=assignment.lease,
        argv=made.argv,
        cwd=made.cwd,
        env=made.env,
        folder=folder.path,
        policy="stop" if assignment.stops_on_disconnect else "continue",
        trust=trust,
        orphan_limit=context.orphan_limit,
    )
    try:
        await asyncio.to_thread(made.cwd.mkdir, parents=True, exist_ok=True)
        shim = await context.shims.start(job)
    except ShimError as error:
        raise HostFault("SHIM_LOST", str(error)) from error
    except OSError as error:
        raise disk_fault(error) from error
    log.info("trainer started", pid=shim.record.pid, resumed_from=chosen.checkpoint or None)
    return shim


def _launch(
    context: AttemptContext, assignment: Assignment, run: RunFile, folder: AttemptFolder, chosen: ResumePoint
) -> LaunchSpec:
    return build_launch(
        assignment,
        run,
        folder,
        resume=chosen.folder,
        python=context.python,
        gpus=context.gpus,
        inherited=context.environment,
    )
