"""From a run file to a run: read it, see what must travel, send what the coordinator does not have, create the run."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from relay import errors
from relay.v1 import runs_pb2 as pb
from relayctl.client import provenance
from relayctl.client.artifacts import Blob, Progress, describe
from relayctl.client.client import RelayClient, run_name
from relayctl.output.format import count, size
from runfile import INIT_FROM, InputFile, RunFile, RunFileErrors, find_inputs, load_run_file, parse_run_file

Stage = Callable[[str, int], Progress]  #: told what begins and how many bytes it is; gives what to report progress to


@dataclass(frozen=True, slots=True)
class Submission:
    """A run file that is right as far as this machine can tell."""

    path: Path
    runfile: RunFile  #: as the host will read it
    files: Sequence[InputFile]

    @property
    def size(self) -> int:
        """Bytes that travel, before the coordinator says what it has already."""
        return sum(travel.source.stat().st_size for travel in self.files)

    @property
    def spec(self) -> dict[str, Any]:
        return self.runfile.to_dict()


async def prepare(path: Path, sets: Sequence[str] = (), name: str | None = None) -> Submission:
    """Reads the run file and finds what travels; RunFileErrors with every mistake."""
    more = [f"name={json.dumps(name)}"] if name else []
    runfile = await asyncio.to_thread(load_run_file, path, [*sets, *more])
    found = await asyncio.to_thread(find_inputs, runfile, path.parent)
    return Submission(path, found.runfile, found.files)


def travel_words(prepared: Submission) -> str:
    """What travels: `2 files, 1.2 MiB: train.py, data.jsonl`."""
    if not prepared.files:
        return "nothing"
    names = [travel.path for travel in prepared.files[:3]] + (["…"] if len(prepared.files) > 3 else [])
    return f"{count(len(prepared.files), 'file')}, {size(prepared.size)}: {', '.join(names)}"


async def check(client: RelayClient, submission: Submission) -> pb.CreateRunResponse:
    """What the coordinator says of it, with nothing sent or created."""
    return await client.create_run(submission.spec, validate_only=True)


async def submit(
    client: RelayClient, submission: Submission, stage: Stage = lambda title, size: lambda done: None
) -> pb.CreateRunResponse:
    """Sends what is missing and creates the run; a run of this name that says the same is that run (not created)."""
    inputs, origin = await send(client, submission, stage)
    try:
        return await client.create_run(submission.spec, inputs=inputs, provenance=origin)
    except errors.RunExists:
        if same := await _same_run(client, submission, inputs):
            return pb.CreateRunResponse(run=same, created=False)
        raise


async def send(
    client: RelayClient, submission: Submission, stage: Stage, more: Iterable[Blob] = ()
) -> tuple[list[pb.Input], pb.Provenance]:
    """Sends what travels, and `more`, as far as it is missing; what the coordinator is to be told of it."""
    origin = await provenance.of(submission.path.parent)
    blobs = await describe(
        (travel.source for travel in submission.files), stage("reading what travels", submission.size)
    )
    diff = Blob.of_bytes(origin.diff) if origin.diff else None
    absent = await client.artifacts.missing([*blobs.values(), *([diff] if diff else []), *more])
    await client.artifacts.upload(absent, stage("sending what travels", sum(blob.size for blob in absent)))
    told = pb.Provenance(
        commit=origin.commit,
        branch=origin.branch,
        diff_digest=diff.digest if diff else "",
        submitter=origin.submitter,
        client=origin.client,
    )
    return [_input(travel, blobs) for travel in submission.files], told


def _input(travel: InputFile, blobs: Mapping[Path, Blob]) -> pb.Input:
    blob = blobs[travel.source]
    return pb.Input(path=travel.path, digest=blob.digest, size=blob.size, executable=os.access(travel.source, os.X_OK))


async def _same_run(client: RelayClient, submission: Submission, inputs: Sequence[pb.Input]) -> pb.Run | None:
    """The run of this name, when it was made from the same run file and the same files."""
    if submission.runfile.name is None:
        return None
    run = await client.run(run_name(submission.runfile.name))
    added = submission.runfile.model is not None and submission.runfile.model.init_from is not None
    travelled = (file for file in run.inputs if not (added and file.path.startswith(f"{INIT_FROM}/")))
    theirs = {(file.path, file.digest) for file in travelled}
    same = theirs == {(file.path, file.digest) for file in inputs} and says_the_same(run, submission)
    return run if same else None


def says_the_same(run: pb.Run, submission: Submission) -> bool:
    """Whether a run was made from the same run file; what travelled with it aside."""
    return _read(run) == submission.runfile


def _read(run: pb.Run) -> RunFile | None:
    try:
        return parse_run_file(json_format.MessageToDict(run.spec), supported=False)
    except RunFileErrors:  # written by another release
        return None
