"""`relayctl export`: write what can be loaded of a run's result or checkpoint to a folder, a bucket or the Hub."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format

from relay.v1 import runs_pb2 as pb
from relayctl.client import PullFailed, RelayClient, SendFailed
from relayctl.client.artifacts import StartProgress
from relayctl.client.client import shorten_name
from relayctl.client.copies import fetch_part, fetch_result
from relayctl.commands.checkpoint_ref import find_complete_checkpoint
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.commands.options import RunOrCheckpoint
from relayctl.commands.push import name_store_in_errors
from relayctl.commands.runner import run_command
from relayctl.output.format import format_bytes, format_count
from relayctl.output.runs import describe_state
from relayctl.output.terminal import Terminal, note, say, show_progress_bars
from runfile import RunFile, RunFileErrors, model_card, parse_run_file
from storage import address
from storage.base import DamagedCopy, StoreRefused, StoreUnavailable
from storage.hub.commit_markers import CommitMarker
from storage.hub.uris import MAIN, model_branch
from storage.hub.worker import HubWorker
from storage.loadable import library_of, list_loadable_files
from storage.manifest import Manifest
from storage.stores import open_store

HUB = "hf://"
HERE = "path/to/this/folder"  #: what the card of files that are not on the Hub says to load


def export(
    context: typer.Context,
    what: RunOrCheckpoint,
    to: Annotated[
        str,
        typer.Option(
            help="Write it to a folder, s3://…, gs://…, az://… or hf://owner/name.",
            metavar="DEST",
            show_default=False,
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Make a new Hub repository private or public.")
    ] = True,
) -> None:
    """Write a run's model where it can be loaded, with a card.

    The result or a checkpoint is written without the trainer's state, with your credentials.
    """
    run_command(context, partial(_export, what, to, private), "export it again with the same command")


@dataclass(frozen=True, slots=True)
class ExportSource:
    """What is exported, and where its bytes are."""

    marker: CommitMarker
    run: pb.Run
    content: pb.CheckpointPart | pb.Output
    metrics: Mapping[str, float]

    @property
    def title(self) -> str:
        """The name of what is exported, in messages."""
        name = shorten_name(self.run.name)
        return f"the result of {name}" if self.marker.kind == "result" else f"step {self.marker.step} of {name}"


@dataclass(frozen=True, slots=True)
class Export:
    """What is written: files by their paths, and texts (card, metadata), given where users load them from."""

    title: str
    marker: CommitMarker
    files: Mapping[str, Path]
    texts: Callable[[str, str], dict[str, str]]

    def write_texts(self, beside: Path) -> dict[str, Path]:
        """Write the texts into a new folder and return all files by path, the texts last. Blocking."""
        beside.mkdir()
        texts = self.texts(HERE, MAIN)
        for path, text in texts.items():
            (beside / path).write_text(text)
        return {**self.files, **{path: beside / path for path in texts}}


#: Writes an export to its destination; what it prepares goes into the folder, which is not there yet.
Write = Callable[[Export, Path, StartProgress], Awaitable[ExitCode]]


async def _export(what: str, to: str, private: bool, client: RelayClient, terminal: Terminal) -> ExitCode:
    write, beside = await asyncio.to_thread(_open_destination, to, private=private)
    source = await (_find_checkpoint(client, what) if "@" in what else _find_result(client, what))
    with _make_temporary_folder(beside) as folder, show_progress_bars(terminal) as bars:
        await _fetch(client, source, folder / "whole", bars)
        made = await _make_export(client, source, folder / "whole")
        return await write(made, folder / "texts", bars)


@contextmanager
def _make_temporary_folder(beside: Path | None) -> Iterator[Path]:
    """Make a temporary folder with an empty `whole` in it, on the file system of a destination that is a folder."""
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".relay-export-", dir=beside) as name:
        Path(name, "whole").mkdir()
        yield Path(name)


def _open_destination(to: str, *, private: bool) -> tuple[Write, Path | None]:
    """Return what writes to the destination, and the folder in which to prepare it if it matters. Blocking."""
    if to.startswith(HUB):
        repo = to.removeprefix(HUB)
        if not address.HUB_REPO.fullmatch(repo):
            raise UsageMistake(f"--to: {to} names no repository on the Hub; one reads hf://owner/name")
        return partial(_to_hub, repo, private=private), None
    if "://" not in to:
        return _open_folder(Path(to))
    try:
        place = address.parse_address(to)
    except address.AddressError as error:
        raise UsageMistake(f"--to: {error}; or a folder, or hf://owner/name") from error
    return _open_folder(Path(place.path)) if place.scheme == "file" else (partial(_to_bucket, place), None)


def _open_folder(folder: Path) -> tuple[Write, Path]:
    """Refuse a folder that is not empty, so that nothing is overwritten or mixed with another export's files."""
    if folder.exists() and any(folder.iterdir()):
        raise SendFailed(f"{folder} is not empty; export into a new folder")
    return partial(_to_folder, folder), folder


# Where it comes from


async def _find_checkpoint(client: RelayClient, point: str) -> ExportSource:
    """Return node 0's part of a checkpoint, which is what can be loaded."""
    checkpoint = await find_complete_checkpoint(client, point)
    run = await client.get_run(checkpoint.name.split("/")[1])
    marker = CommitMarker(
        "model", shorten_name(run.name), checkpoint.attempt, shorten_name(checkpoint.lease), checkpoint.step
    )
    return ExportSource(marker, run, checkpoint.parts[0], checkpoint.metrics)


async def _find_result(client: RelayClient, name: str) -> ExportSource:
    """Return a run's result, with the marker that its agent gives it, so that a commit of the agent's is recognized."""
    run = await client.get_run(name)
    run_id = shorten_name(run.name)
    ended = [each for each in await client.list_attempts(name) if each.outcome == pb.Attempt.SUCCEEDED]
    if not (run.HasField("output") and ended):
        raise PullFailed(
            f"{shorten_name(run.name)} has no result: it {describe_state(run)}; a checkpoint is RUN@latest"
        )
    step = max(run.progress.step, run.head.step)
    marker = CommitMarker("result", run_id, ended[-1].number, shorten_name(ended[-1].name), step)
    return ExportSource(marker, run, run.output, run.head.metrics)


async def _fetch(client: RelayClient, source: ExportSource, folder: Path, bars: StartProgress) -> Manifest:
    progress = bars("fetching", source.content.size)
    if isinstance(source.content, pb.Output):
        return await fetch_result(client, source.content, folder, progress)
    return await fetch_part(client, source.content, folder, progress)


async def _make_export(client: RelayClient, source: ExportSource, folder: Path) -> Export:
    files = await asyncio.to_thread(list_loadable_files, folder)
    if not files:
        raise PullFailed(f"{source.title} has no files")
    facts = model_card.CardFacts(
        run=_parse_run_file(source.run),
        run_id=source.marker.run,
        attempt=source.marker.attempt,
        lease=source.marker.lease,
        step=source.marker.step,
        final=source.marker.kind == "result",
        library=library_of(files),
        files=files.keys(),
        record=await asyncio.to_thread(model_card.read_record, folder),
        digest=source.content.manifest_digest if source.marker.kind == "model" else "",
        metrics=source.metrics,
        inputs={each.path: each.digest for each in source.run.inputs},
        pins=source.run.pins,
        attempts=[_summarize(attempt) for attempt in await client.list_attempts(source.run.name)],
    )
    return Export(source.title, source.marker, files, partial(model_card.render_texts, facts))


def _summarize(attempt: pb.Attempt) -> model_card.AttemptSummary:
    return model_card.AttemptSummary(
        number=attempt.number,
        hosts=[place.agent.removeprefix("agents/") for place in attempt.places],
        resumed_step=attempt.resumed_step if attempt.resumed_from else None,
        outcome=pb.Attempt.Outcome.Name(attempt.outcome),
    )


def _parse_run_file(run: pb.Run) -> RunFile:
    try:
        return parse_run_file(json_format.MessageToDict(run.spec), supported=False)
    except RunFileErrors as error:
        raise PullFailed(
            f"{shorten_name(run.name)} was submitted by another release, whose run file is not known here"
        ) from error


# Where it goes


async def _to_folder(folder: Path, made: Export, beside: Path, bars: StartProgress) -> ExitCode:
    files = await asyncio.to_thread(made.write_texts, beside)
    total = await asyncio.to_thread(_move_files, files, folder)
    say(f"{made.title} is in {folder}: {format_count(len(files), 'file')}, {format_bytes(total)}")
    return ExitCode.OK


def _move_files(files: Mapping[str, Path], folder: Path) -> int:
    """Move files to their paths in the folder and return the bytes of all. Blocking."""
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        source.rename(folder / path)
    return sum((folder / path).stat().st_size for path in files)


async def _to_bucket(place: address.Address, made: Export, beside: Path, bars: StartProgress) -> ExitCode:
    files = await asyncio.to_thread(made.write_texts, beside)
    total = sum([(await asyncio.to_thread(source.stat)).st_size for source in files.values()])
    with name_store_in_errors(str(place)):
        open_store(str(place))  # raises StoreRefused when buckets cannot be used here
        from storage.bucket import put_files

        await put_files(place, files, bars("sending", total))
    say(f"{made.title} is in {place}: {format_count(len(files), 'file')}, {format_bytes(total)}")
    return ExitCode.OK


async def _to_hub(repo: str, made: Export, beside: Path, bars: StartProgress, *, private: bool) -> ExitCode:
    """Write one commit, to `main` unless that belongs to another run, else to the run's own branch."""
    run = made.marker.run
    try:
        done = await HubWorker(sys.executable, os.environ).run_job(
            "publish_model",
            repo=repo,
            private=private,
            marker=asdict(made.marker),
            files={path: str(source) for path, source in made.files.items()},
            texts={branch: made.texts(repo, branch) for branch in (MAIN, model_branch(run))},
            expected=None,
        )
    except (StoreRefused, DamagedCopy) as error:
        note(f"{made.title} is not exported: {error}")
        return ExitCode.REFUSED
    except StoreUnavailable as error:
        note(f"the Hub cannot be reached; try again: {error}")
        return ExitCode.UNREACHABLE
    if done["note"]:
        note(done["note"])
    say(f"{made.title} is at {repo} ({done['branch']}, commit {done['commit'][:8]})")
    return ExitCode.OK
