"""Submitting a run file: read it, find the files that it names, upload those that are missing, create the run.

prepared = await prepare_run(Path("sums.yaml"))
response = await submit_run(client, prepared)
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from relay import errors
from relay.v1 import runs_pb2 as pb
from relayctl.client.artifacts import Blob, StartProgress, hash_files
from relayctl.client.client import RelayClient, qualify_name
from relayctl.client.provenance import read_provenance
from runfile import INIT_FROM, InputFile, RunFile, RunFileErrors, find_inputs, load_run_file, parse_run_file
from storage.base import ignore_progress


@dataclass(frozen=True, slots=True)
class PreparedSubmission:
    """A run file without mistakes that this machine can find, and the files that are uploaded with the run."""

    path: Path
    runfile: RunFile  #: with paths as the host will see them
    files: Sequence[InputFile]

    @property
    def size(self) -> int:
        """Bytes of all files, including those that the coordinator may have already."""
        return sum(file.source.stat().st_size for file in self.files)

    @property
    def spec(self) -> dict[str, Any]:
        """The run file as plain values."""
        return self.runfile.to_dict()


async def prepare_run(path: Path, sets: Sequence[str] = (), name: str | None = None) -> PreparedSubmission:
    """Read a run file, with `key=value` overrides, and find its files; raises RunFileErrors with every mistake."""
    more = [f"name={json.dumps(name)}"] if name else []
    runfile = await asyncio.to_thread(load_run_file, path, [*sets, *more])
    inputs = await asyncio.to_thread(find_inputs, runfile, path.parent)
    return PreparedSubmission(path, inputs.runfile, inputs.files)


async def validate_run(client: RelayClient, prepared: PreparedSubmission) -> pb.CreateRunResponse:
    """Return what the coordinator would answer to the submission; nothing is uploaded or created."""
    return await client.create_run(prepared.spec, validate_only=True)


async def submit_run(
    client: RelayClient,
    prepared: PreparedSubmission,
    start_progress: StartProgress = lambda title, size: ignore_progress,
) -> pb.CreateRunResponse:
    """Upload what is missing and create the run; a run of the same name, run file and files is returned instead."""
    inputs, origin = await upload_inputs(client, prepared, start_progress)
    try:
        return await client.create_run(prepared.spec, inputs=inputs, provenance=origin)
    except errors.RunExists:
        if same := await _find_same_run(client, prepared, inputs):
            return pb.CreateRunResponse(run=same, created=False)
        raise


async def upload_inputs(
    client: RelayClient, prepared: PreparedSubmission, start_progress: StartProgress, more: Iterable[Blob] = ()
) -> tuple[list[pb.Input], pb.Provenance]:
    """Upload the run's files, and `more` blobs, as far as they are missing; return what CreateRun needs to know."""
    origin = await read_provenance(prepared.path.parent)
    blobs = await hash_files((file.source for file in prepared.files), start_progress("reading files", prepared.size))
    diff = Blob.from_bytes(origin.diff) if origin.diff else None
    missing = await client.artifacts.find_missing([*blobs.values(), *([diff] if diff else []), *more])
    await client.artifacts.upload(missing, start_progress("uploading", sum(blob.size for blob in missing)))
    provenance = pb.Provenance(
        commit=origin.commit,
        branch=origin.branch,
        diff_digest=diff.digest if diff else "",
        submitter=origin.submitter,
        client=origin.client,
    )
    return [_make_input(file, blobs) for file in prepared.files], provenance


def _make_input(file: InputFile, blobs: Mapping[Path, Blob]) -> pb.Input:
    blob = blobs[file.source]
    return pb.Input(path=file.path, digest=blob.digest, size=blob.size, executable=os.access(file.source, os.X_OK))


async def _find_same_run(
    client: RelayClient, prepared: PreparedSubmission, inputs: Sequence[pb.Input]
) -> pb.Run | None:
    """Return the run of this name if it was made from the same run file and the same files."""
    if prepared.runfile.name is None:
        return None
    run = await client.get_run(qualify_name(prepared.runfile.name))
    starts_from_run = prepared.runfile.model is not None and prepared.runfile.model.init_from is not None
    uploaded = (file for file in run.inputs if not (starts_from_run and file.path.startswith(f"{INIT_FROM}/")))
    same_files = {(file.path, file.digest) for file in uploaded} == {(file.path, file.digest) for file in inputs}
    return run if same_files and has_same_spec(run, prepared) else None


def has_same_spec(run: pb.Run, prepared: PreparedSubmission) -> bool:
    """Return whether the run was made from the same run file; the files uploaded with it are not compared."""
    return _parse_spec(run) == prepared.runfile


def _parse_spec(run: pb.Run) -> RunFile | None:
    try:
        return parse_run_file(json_format.MessageToDict(run.spec), supported=False)
    except RunFileErrors:  # written by another release
        return None
