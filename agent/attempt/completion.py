"""The end of a lease: store the result, send the last bytes to the coordinator, report the outcome."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from agent.attempt.exit_classification import FailureCause, StopCause
from agent.context import AttemptContext
from agent.coordinator_client import CALL_TIMEOUT, call_with_retry
from agent.errors import HostFault
from agent.events.journal import Journal
from agent.events.sources import EventSource, measure_final_length
from agent.folder import AttemptFolder
from agent.stores.publishing import AttemptStore
from agent.wire import Assignment, make_failure
from relay.errors import BlobTooLarge, CheckpointMissing, EventsMissing, LeaseLost, RelayError
from relay.logs import get_logger
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2
from runfile import RunFile
from storage.base import StoreRefused
from storage.manifest import Manifest, ManifestError, ManifestFile, hash_file, list_files

log = get_logger(__name__)

LOGS_TIMEOUT = 60.0  #: seconds that storing an attempt's logs may take

#: Waits until the coordinator has what must precede the end, and returns the newest registered step.
Precondition = Callable[[], Awaitable[int | None]]

_CAUSES = {
    StopCause.REQUESTED: pb.Stopped.REQUESTED,
    StopCause.LEAVING: pb.Stopped.LEAVING,
    StopCause.TRUST_LOST: pb.Stopped.TRUST_LOST,
}


def make_stopped(cause: StopCause) -> pb.CompleteLeaseRequest:
    """Return the report of an attempt that was stopped."""
    return pb.CompleteLeaseRequest(stopped=pb.Stopped(cause=_CAUSES[cause]))


def make_failed(cause: FailureCause) -> pb.CompleteLeaseRequest:
    """Return the report of a trainer's failure, or of the infrastructure's where the cause says so."""
    if cause.infrastructure:
        return make_faulted(cause.reason, cause.text)
    error = make_failure(cause.reason, cause.text)
    return pb.CompleteLeaseRequest(
        failed=pb.Failed(error=error, permanent=cause.permanent, last_lines=cause.last_lines)
    )


def make_faulted(reason: str, text: str) -> pb.CompleteLeaseRequest:
    """Return the report of a failure of the infrastructure."""
    return pb.CompleteLeaseRequest(faulted=pb.Faulted(error=make_failure(reason, text)))


async def publish_result(
    publishing: AttemptStore, assignment: Assignment, run: RunFile, folder: AttemptFolder, journal: Journal
) -> pb.CompleteLeaseRequest:
    """Store the run's result, where it has one, and return the report: success, or a failure when no store can take it.

    Raises HostFault when the result cannot be stored here and now.
    """
    try:
        files = await _find_result_files(run, folder, journal)
        if not files:
            return pb.CompleteLeaseRequest(succeeded=pb.Succeeded())
        manifest = await asyncio.to_thread(build_manifest, files)
        uri = await publishing.put(assignment.place(run, None), manifest, lambda file: files[file.path])
    except (BlobTooLarge, ManifestError) as error:
        return make_failed(
            FailureCause("OUTPUT_INVALID", f"the run's result cannot be stored: {error}", permanent=True)
        )
    except (RelayError, StoreRefused, OSError) as error:
        raise HostFault("OUTPUT_NOT_STORED", f"the run's result cannot be stored: {error}") from error
    return pb.CompleteLeaseRequest(succeeded=pb.Succeeded(output=_make_output(manifest, uri or "")))


async def _find_result_files(run: RunFile, folder: AttemptFolder, journal: Journal) -> dict[str, Path]:
    if not run.outputs:
        return await asyncio.to_thread(list_folder, folder.output)
    files, empty = await asyncio.to_thread(match_outputs, folder.work / run.workdir, run.outputs)
    for pattern in empty:
        await journal.record("warning", f"outputs: {pattern} matches no file")
    return files


def _make_output(manifest: Manifest, uri: str) -> runs_pb2.Output:
    elsewhere = "" if uri.startswith("relay://") else uri
    return runs_pb2.Output(
        manifest_digest=manifest.digest, files=len(manifest.files), size=manifest.size, uri=elsewhere
    )


async def publish_logs(
    publishing: AttemptStore, assignment: Assignment, run: RunFile, folder: AttemptFolder, journal: Journal
) -> None:
    """Store logs and run file beside the checkpoints, where the layout has a place; a failure is only recorded."""
    if run.checkpoint.layout != "framework" or publishing.scheme == "relay":
        return
    rooms = {"logs": (folder.stdout, folder.stderr, folder.events), "config": (folder.run_file,)}
    for room, paths in rooms.items():
        place = replace(assignment.place(run, None), records=room)
        files = {path.name: path for path in paths if path.exists()}
        try:
            manifest = await asyncio.to_thread(build_manifest, files)
            async with asyncio.timeout(LOGS_TIMEOUT):
                await publishing.put(place, manifest, lambda file: folder.path / file.path)
        except (TimeoutError, ManifestError, StoreRefused, OSError) as error:
            why = str(error) or "it takes too long"
            await journal.record("warning", f"the attempt's {room} are not in {publishing.scheme}://: {why}")


async def complete_lease(
    context: AttemptContext,
    assignment: Assignment,
    sources: Iterable[EventSource],
    outcome: pb.CompleteLeaseRequest,
    reporting: asyncio.Lock,
    first: Precondition | None = None,
) -> None:
    """Report how the lease ended, once everything that its sources hold is stored and `first` has returned.

    Raises LeaseLost. `reporting` is held while an answer is awaited: only that answer says then whether the lease was
    lost. An end that the coordinator refuses becomes a fault; when the fault is refused, too, the lease is no longer
    listed in heartbeats, and the coordinator ends it by itself.
    """
    try:
        await _complete(context, assignment, sources, outcome, reporting, first)
    except LeaseLost:
        raise
    except RelayError as refusal:
        log.error("end refused", outcome=outcome.WhichOneof("outcome"), reason=refusal)
        if not outcome.HasField("faulted"):
            fault = make_faulted("END_REFUSED", f"its end was refused: {refusal}")
            await complete_lease(context, assignment, (), fault, reporting)


async def _complete(
    context: AttemptContext,
    assignment: Assignment,
    sources: Iterable[EventSource],
    outcome: pb.CompleteLeaseRequest,
    reporting: asyncio.Lock,
    first: Precondition | None,
) -> None:
    sources = list(sources)
    lengths = [await asyncio.to_thread(measure_final_length, source.path, lines=source.lines) for source in sources]
    outcome.lease, outcome.node = assignment.lease, assignment.node
    for source, length in zip(sources, lengths, strict=True):
        outcome.final_cursors.add(node=source.node, source=source.name, offset=length)
    while True:
        for source, length in zip(sources, lengths, strict=True):
            await source.wait_stored(length)
        outcome.ClearField("registered_step")
        if first is not None and (step := await first()) is not None:
            outcome.registered_step = step
        try:
            async with reporting:
                answer = await call_with_retry(
                    context.contact,
                    lambda: context.stub.CompleteLease(outcome, metadata=context.metadata, timeout=CALL_TIMEOUT),
                )
            break
        except (EventsMissing, CheckpointMissing):  # a failover lost what had been acknowledged: it is sent again first
            await context.contact.wait_for_reply()
    state = runs_pb2.Run.State.Name(answer.state)
    log.info("end reported", outcome=outcome.WhichOneof("outcome"), state=state)


# --- the files of a result, whose every byte is read: to be called in a thread ---------------------


def list_folder(folder: Path) -> dict[str, Path]:
    """Return all files of the output folder by their paths in it; raise ManifestError for links and devices."""
    paths = list_files(folder) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path for path in paths}


def match_outputs(cwd: Path, patterns: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Return the files that match patterns relative to `cwd`, and the patterns that match nothing.

    Links that lead out of `cwd` are not followed (R7).
    """
    inside = cwd.resolve()
    found: dict[str, Path] = {}
    empty = []
    for pattern in patterns:
        paths = [cwd / name for name in glob.glob(pattern, root_dir=cwd, recursive=True, include_hidden=True)]
        files = [path for path in paths if path.is_file() and path.resolve().is_relative_to(inside)]
        found |= {path.relative_to(cwd).as_posix(): path for path in files}
        if not files:
            empty.append(pattern)
    return found, empty


def build_manifest(files: dict[str, Path]) -> Manifest:
    """Return the manifest of files that lie anywhere, under the paths that they are to have."""
    return Manifest(
        tuple(
            ManifestFile(name, size, digest, os.access(path, os.X_OK))
            for name, path in sorted(files.items())
            for digest, size in [hash_file(path)]
        )
    )
