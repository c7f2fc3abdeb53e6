"""`relayctl import`: make a paused run of a training that ran elsewhere, with its checkpoints and its curve."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from relay.errors import RunExists, RunUnknown
from relay.v1 import runs_pb2 as pb
from relayctl.client import RelayClient
from relayctl.client.artifacts import Blob, StartProgress, hash_files
from relayctl.client.client import qualify_name, shorten_name
from relayctl.client.submission import PreparedSubmission, has_same_spec, prepare_run, upload_inputs
from relayctl.commands.creation import CreationArguments, create_planned_run, show_plan
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.commands.options import DryRun, Format, Overrides, Quiet
from relayctl.commands.runner import run_command
from relayctl.local import external_checkpoints, external_metrics
from relayctl.local.external_checkpoints import ExternalCheckpoint, ExternalTraining, NotImportable
from relayctl.local.external_metrics import ExternalCurve
from relayctl.output.format import format_block, format_bytes, format_count, make_printable
from relayctl.output.plan import PLACEMENT_UNKNOWN, describe_hub, describe_keep, describe_uploads, list_plan_entries
from relayctl.output.runs import describe_state
from relayctl.output.serialize import Output
from relayctl.output.terminal import Terminal
from storage.manifest import Manifest, ManifestFile

MOST = 1000  #: checkpoints that can be imported at once


@dataclass(frozen=True, slots=True)
class ImportArguments(CreationArguments):
    """The arguments of `import`."""

    folder: Path
    last: int | None


@dataclass(frozen=True, slots=True)
class PreparedImport:
    """A run file and a training without mistakes that this machine can find."""

    run: PreparedSubmission
    training: ExternalTraining
    curve: ExternalCurve

    def to_message(self, checkpoint: ExternalCheckpoint, manifest: Manifest | None = None) -> pb.ImportedCheckpoint:
        """Describe a checkpoint to the coordinator, with its digest once the manifest is known."""
        return pb.ImportedCheckpoint(
            step=checkpoint.step,
            metrics=self.curve.checkpoint_metrics.get(checkpoint.step, {}),
            manifest_digest=manifest.digest if manifest else "",
            size=manifest.size if manifest else checkpoint.total_size,
            files=len(manifest.files) if manifest else len(checkpoint.files) + len(checkpoint.added),
            time=Timestamp(seconds=math.floor(checkpoint.time), nanos=int(checkpoint.time % 1 * 1e9)),
        )


def import_run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The run file to continue it with.", metavar="FILE", show_default=False)],
    folder: Annotated[
        Path,
        typer.Argument(
            help="Where its checkpoints are: step_* or checkpoint-* folders.", metavar="FOLDER", show_default=False
        ),
    ],
    sets: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="Name the run [as the run file does, else as the folder].", show_default=False)
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="Import only the newest N checkpoints.", metavar="N", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    output: Format = Output.TABLE,
    quiet: Quiet = False,
) -> None:
    """Import a training that ran elsewhere as a paused run.

    The run has the training's checkpoints and curve; `relayctl resume` continues it.
    """
    chosen = Output.NAME if quiet else output
    arguments = ImportArguments(file, sets or (), name, dry_run, chosen, folder, last)
    run_command(context, partial(_import, arguments), "nothing was imported yet; the same command sends the rest")


async def _import(arguments: ImportArguments, client: RelayClient, terminal: Terminal) -> ExitCode:
    prepared = await _prepare(arguments)
    checkpoints = [prepared.to_message(checkpoint) for checkpoint in prepared.training.checkpoints]
    validation = client.import_run(prepared.run.spec, checkpoints, validate_only=True)
    validated = await show_plan(arguments, validation, partial(_format_plan, prepared))
    await _require_name(client, prepared.run)
    await create_planned_run(arguments, terminal, validated, partial(_upload, client, prepared), _format_result)
    return ExitCode.OK


async def _prepare(arguments: ImportArguments) -> PreparedImport:
    if not await asyncio.to_thread(arguments.folder.is_dir):
        raise UsageMistake(f"{arguments.folder} is not a folder")
    run = await prepare_run(arguments.file, arguments.sets, arguments.name)
    if run.runfile.name is None:
        name = await asyncio.to_thread(_derive_name, arguments.folder)
        run = await prepare_run(arguments.file, arguments.sets, name)
    training = await asyncio.to_thread(external_checkpoints.find_checkpoints, arguments.folder, arguments.last)
    if len(training.checkpoints) > MOST:
        raise NotImportable(
            f"{arguments.folder}: {len(training.checkpoints)} checkpoints; "
            f"at most {MOST} are taken, so say --last {MOST}"
        )
    curve = await asyncio.to_thread(external_metrics.read_curve, arguments.folder, training.checkpoints)
    return PreparedImport(run, training, curve)


def _derive_name(folder: Path) -> str:
    """Return a name for a run that resembles the folder's."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")[:128]
    if not name:
        raise UsageMistake(f"{folder}: no run can be named like it; give a name with --name")
    return name


async def _require_name(client: RelayClient, prepared: PreparedSubmission) -> None:
    """Raise RunExists, before anything is read or sent, when a run of another run file has the name."""
    name = prepared.runfile.name or ""
    try:
        run = await client.get_run(qualify_name(name))
    except RunUnknown:
        return
    if not has_same_spec(run, prepared):
        raise RunExists(f"there is a run {name} already, with another spec")


async def _upload(client: RelayClient, prepared: PreparedImport, bars: StartProgress) -> pb.ImportRunResponse:
    training, curve = prepared.training, prepared.curve
    total = sum(checkpoint.size for checkpoint in training.checkpoints)
    paths = (path for checkpoint in training.checkpoints for path in checkpoint.files.values())
    blobs = await hash_files(paths, bars("reading checkpoints", total))
    manifests = [_make_manifest(checkpoint, blobs) for checkpoint in training.checkpoints]
    added = (content for checkpoint in training.checkpoints for content in checkpoint.added.values())
    more = [*blobs.values(), *map(Blob.from_bytes, added)]
    more += [Blob.from_bytes(manifest.to_bytes()) for manifest in manifests]
    curve_blob = Blob.from_bytes(curve.content) if curve.points else None
    more += [curve_blob] if curve_blob else []
    inputs, provenance = await upload_inputs(client, prepared.run, bars, more)
    pairs = zip(training.checkpoints, manifests, strict=True)
    return await client.import_run(
        prepared.run.spec,
        [prepared.to_message(checkpoint, manifest) for checkpoint, manifest in pairs],
        inputs=inputs,
        provenance=provenance,
        curve_digest=curve_blob.digest if curve_blob else "",
        origin=f"{make_printable(str(training.root.resolve()))} on {socket.gethostname()}",
    )


def _make_manifest(checkpoint: ExternalCheckpoint, blobs: dict[Path, Blob]) -> Manifest:
    files = [
        ManifestFile(path, blobs[file].size, blobs[file].digest, os.access(file, os.X_OK))
        for path, file in checkpoint.files.items()
    ]
    added = [(path, Blob.from_bytes(content)) for path, content in checkpoint.added.items()]
    files += [ManifestFile(path, blob.size, blob.digest) for path, blob in added]
    return Manifest(tuple(sorted(files, key=lambda file: file.path)), checkpoint.step)


def _format_plan(prepared: PreparedImport, validated: pb.ImportRunResponse | None) -> str:
    run, training = prepared.run, prepared.training
    entries = list_plan_entries(run.runfile, str(run.path))
    entries.append(("imports", _describe_checkpoints(training)))
    entries.append(("skipped", "\n".join(f"{make_printable(name)}: {why}" for name, why in training.skipped)))
    entries.append(("curve", _describe_curve(prepared.curve, training.head.step)))
    entries.append(("was", _describe_status(training)))
    entries.append(("hub", describe_hub(run.runfile, None)))
    entries.append(("uploads", describe_uploads(run)))
    if validated is None:
        return format_block([*entries, ("placement", PLACEMENT_UNKNOWN)])
    entries.append(("keeps", _describe_retention(prepared, validated)))
    return format_block([*entries, ("placement", f"paused until it is resumed; {make_printable(validated.placement)}")])


def _describe_checkpoints(training: ExternalTraining) -> str:
    every = training.checkpoints
    files, total = sum(len(each.files) for each in every), sum(each.size for each in every)
    contents = f"{format_count(files, 'file')}, {format_bytes(total)}, from {training.root}"
    return f"{format_count(len(every), 'checkpoint')} ({_list_steps([each.step for each in every])}): {contents}"


def _list_steps(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps[-6:]]
    return f"step{'s' if len(steps) > 1 else ''} {'… ' if len(steps) > 6 else ''}{', '.join(shown)}"


def _describe_curve(curve: ExternalCurve, head: int) -> str:
    unread = f"; {format_count(curve.unread, 'entry', 'entries')} there not understood" if curve.unread else ""
    if not curve.points:
        return f"none{unread}"
    points = f"{format_count(curve.points, 'point')} of {external_metrics.list_names(curve.metrics)}"
    return f"{points}, up to step {head}, from {curve.origin}{unread}"


def _describe_status(training: ExternalTraining) -> str:
    status = external_checkpoints.read_status(training.root)
    return ", ".join(f"{name} {make_printable(value)}" for name, value in status.items())


def _describe_retention(prepared: PreparedImport, validated: pb.ImportRunResponse) -> str:
    """Describe which checkpoints the run file keeps, which it lets be deleted and when, and how to keep more."""
    keep, deleted = prepared.run.runfile.checkpoint.keep, validated.steps_to_remove
    kept = f"the run file keeps {describe_keep(keep)}"
    if not deleted:
        return f"all of them while it is paused; then {kept}, those that the run saves itself included"
    when = "with the next look at ages" if keep.max_age is not None else "once it is resumed"
    pin = f"relayctl checkpoints pin {shorten_name(validated.run.name)}@{deleted[-1]}"
    verb = "are deleted" if len(deleted) > 1 else "is deleted"
    return f"{_list_steps(deleted)} {verb} {when}, for {kept}; to keep more: --set checkpoint.keep.last=N, or {pin}"


def _format_result(response: pb.ImportRunResponse) -> str:
    name = shorten_name(response.run.name)
    if response.created:
        step = response.run.head.step
        return f"\nimported {name}; it is paused at step {step}; continue it with: relayctl resume {name}"
    return f"\n{name} had been imported already and it {describe_state(response.run)}; nothing new was made"
