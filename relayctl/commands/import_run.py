"""`relayctl import`: a training that ran elsewhere becomes a run, with its checkpoints and its curve, and rests."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from relay.errors import RunExists, RunUnknown
from relay.v1 import runs_pb2 as pb
from relayctl.client import submission
from relayctl.client.artifacts import Blob, describe
from relayctl.client.channel import Unreachable
from relayctl.client.client import RelayClient, run_name, short
from relayctl.client.submission import Stage, Submission
from relayctl.commands.exits import ExitCode
from relayctl.commands.looking import UsageMistake, machine
from relayctl.local import external_checkpoints, external_metrics
from relayctl.local.external_checkpoints import Foreign, Found, NotImportable
from relayctl.local.external_metrics import Curve
from relayctl.output import views
from relayctl.output.format import block, count, printable, size
from relayctl.output.plan import hub_words
from relayctl.output.serialize import Output, plain, single
from relayctl.output.terminal import Terminal, byte_bars, say
from storage.manifest import Manifest, ManifestFile

MOST = 1000  #: checkpoints that are taken at once


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    file: Path
    folder: Path
    sets: Sequence[str]
    name: str | None
    last: int | None
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run file and a training, as far as this machine can tell."""

    submission: Submission
    found: Found
    curve: Curve

    def told(self, checkpoint: Foreign, manifest: Manifest | None = None) -> pb.ImportedCheckpoint:
        """A checkpoint, with its content once that is known."""
        return pb.ImportedCheckpoint(
            step=checkpoint.step,
            metrics=self.curve.judged.get(checkpoint.step, {}),
            manifest_digest=manifest.digest if manifest else "",
            size=manifest.size if manifest else checkpoint.weight,
            files=len(manifest.files) if manifest else len(checkpoint.files) + len(checkpoint.added),
            time=Timestamp(seconds=math.floor(checkpoint.time), nanos=int(checkpoint.time % 1 * 1e9)),
        )


async def bring(client: RelayClient, asked: Asked, terminal: Terminal, output: Output) -> ExitCode:
    """Shows what would become of it, and unless it is a rehearsal imports it."""
    quiet = machine(output) or output is Output.NAME
    prepared = await _prepare(asked)
    checkpoints = [prepared.told(each) for each in prepared.found.checkpoints]
    try:
        checked = await client.import_run(prepared.submission.spec, checkpoints, validate_only=True)
    except Unreachable:
        if asked.dry_run and not quiet:
            say(_plan(prepared, None))
        raise
    if not quiet:
        say(_plan(prepared, checked))
    await _require_name(client, prepared.submission)
    if asked.dry_run:
        if quiet:
            say(_result(checked, output))
        return ExitCode.OK
    with byte_bars(terminal) as bars:
        made = await _import(client, prepared, bars)
    say(_result(made, output))
    return ExitCode.OK


async def _prepare(asked: Asked) -> Prepared:
    if not await asyncio.to_thread(asked.folder.is_dir):
        raise UsageMistake(f"{asked.folder} is not a folder")
    prepared = await submission.prepare(asked.file, asked.sets, asked.name)
    if prepared.runfile.name is None:
        name = await asyncio.to_thread(_name_of, asked.folder)
        prepared = await submission.prepare(asked.file, asked.sets, name)
    found = await asyncio.to_thread(external_checkpoints.look, asked.folder, asked.last)
    if len(found.checkpoints) > MOST:
        raise NotImportable(
            f"{asked.folder}: {len(found.checkpoints)} checkpoints; at most {MOST} are taken, so say --last {MOST}"
        )
    return Prepared(prepared, found, await asyncio.to_thread(external_metrics.of, asked.folder, found.checkpoints))


def _name_of(folder: Path) -> str:
    """A run's name, of the folder's."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")[:128]
    if not name:
        raise UsageMistake(f"{folder}: no run can be named like it; give a name with --name")
    return name


async def _require_name(client: RelayClient, wanted: Submission) -> None:
    """RunExists, before anything is read or sent, when the name is that of a run of another run file."""
    name = wanted.runfile.name or ""
    try:
        run = await client.run(run_name(name))
    except RunUnknown:
        return
    if not submission.says_the_same(run, wanted):
        raise RunExists(f"there is a run {name} already, with another spec")


async def _import(client: RelayClient, prepared: Prepared, stage: Stage) -> pb.ImportRunResponse:
    found, curve = prepared.found, prepared.curve
    total = sum(each.size for each in found.checkpoints)
    paths = (path for each in found.checkpoints for path in each.files.values())
    blobs = await describe(paths, stage("reading checkpoints", total))
    manifests = [_manifest(each, blobs) for each in found.checkpoints]
    more = [*blobs.values(), *(Blob.of_bytes(data) for each in found.checkpoints for data in each.added.values())]
    more += [Blob.of_bytes(manifest.to_bytes()) for manifest in manifests]
    drawn = Blob.of_bytes(curve.content) if curve.points else None
    inputs, provenance = await submission.send(client, prepared.submission, stage, [*more, *([drawn] if drawn else [])])
    return await client.import_run(
        prepared.submission.spec,
        [prepared.told(each, manifest) for each, manifest in zip(found.checkpoints, manifests, strict=True)],
        inputs=inputs,
        provenance=provenance,
        curve_digest=drawn.digest if drawn else "",
        origin=f"{printable(str(found.root.resolve()))} on {socket.gethostname()}",
    )


def _manifest(checkpoint: Foreign, blobs: dict[Path, Blob]) -> Manifest:
    files = [
        ManifestFile(path, blobs[file].size, blobs[file].digest, os.access(file, os.X_OK))
        for path, file in checkpoint.files.items()
    ]
    added = [(path, Blob.of_bytes(data)) for path, data in checkpoint.added.items()]
    files += [ManifestFile(path, blob.size, blob.digest) for path, blob in added]
    return Manifest(tuple(sorted(files, key=lambda file: file.path)), checkpoint.step)


def _plan(prepared: Prepared, checked: pb.ImportRunResponse | None) -> str:
    wanted, found = prepared.submission, prepared.found
    entries = views.spec_block(wanted.runfile, str(wanted.path))
    entries.append(("imports", _imports_words(found)))
    entries.append(("passed over", "\n".join(f"{printable(name)}: {why}" for name, why in found.passed_over)))
    entries.append(("curve", _curve_words(prepared.curve, found.head.step)))
    entries.append(("was", _status_words(found)))
    entries.append(("hub", hub_words(wanted.runfile, None)))
    entries.append(("travels", submission.travel_words(wanted)))
    if checked is None:
        return block([*entries, ("placement", "not known: the coordinator does not answer")])
    entries.append(("stays", _stays_words(prepared, checked)))
    return block([*entries, ("placement", f"rests until it is resumed; {printable(checked.placement)}")])


def _imports_words(found: Found) -> str:
    many = found.checkpoints
    files, bytes_ = sum(len(each.files) for each in many), sum(each.size for each in many)
    lie = f"{count(files, 'file')}, {size(bytes_)}, from {found.root}"
    return f"{count(len(many), 'checkpoint')} ({_steps([each.step for each in many])}): {lie}"


def _steps(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps[-6:]]
    return f"step{'s' if len(steps) > 1 else ''} {'… ' if len(steps) > 6 else ''}{', '.join(shown)}"


def _curve_words(curve: Curve, head: int) -> str:
    unread = f"; {count(curve.unread, 'entry', 'entries')} there not understood" if curve.unread else ""
    if not curve.points:
        return f"none{unread}"
    points = f"{count(curve.points, 'point')} of {external_metrics.names(curve.metrics)}"
    return f"{points}, up to step {head}, from {curve.origin}{unread}"


def _status_words(found: Found) -> str:
    return ", ".join(f"{name} {printable(said)}" for name, said in external_checkpoints.status_of(found.root).items())


def _stays_words(prepared: Prepared, checked: pb.ImportRunResponse) -> str:
    """What the run file will let go, and how to keep it."""
    keep, going = prepared.submission.runfile.checkpoint.keep, checked.steps_to_remove
    kept = f"the run file keeps {views.keep_words(keep)}"
    if not going:
        return f"all of it while it rests; then {kept}, those that the run saves itself included"
    when = "with the next look at ages" if keep.max_age is not None else "once it is resumed"
    pin = f"relayctl checkpoints pin {short(checked.run.name)}@{going[-1]}"
    goes = f"{_steps(going)} {'go' if len(going) > 1 else 'goes'} {when}"
    return f"{goes}, for {kept}; to keep more: --set checkpoint.keep.last=N, or {pin}"


def _result(made: pb.ImportRunResponse, output: Output) -> str:
    name = short(made.run.name)
    if output is Output.NAME:
        return name
    if machine(output):
        return single(plain(made), output)
    if made.created:
        step = made.run.head.step
        return f"\nimported {name}; it rests at step {step}; go on with: relayctl resume {name}"
    return f"\n{name} had been imported already and it {views.standing(made.run)}; nothing new was made"
