"""What can be loaded of a run, written where people load it from: a folder, a bucket, the Hugging Face Hub."""

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

from google.protobuf import json_format

from relay.v1 import runs_pb2 as pb
from relayctl.client import copies
from relayctl.client.artifacts import PullFailed, SendFailed
from relayctl.client.client import RelayClient, short
from relayctl.commands import acting
from relayctl.commands.exits import ExitCode
from relayctl.commands.looking import UsageMistake
from relayctl.commands.push import telling
from relayctl.output import views
from relayctl.output.format import count, size
from relayctl.output.terminal import Terminal, byte_bars, note, say
from runfile import RunFile, RunFileErrors, model_card, parse_run_file
from storage import address
from storage.base import DamagedCopy, Progress, StoreRefused, StoreUnavailable
from storage.hub.commit_markers import CommitMarker
from storage.hub.uris import MAIN, model_branch
from storage.hub.worker import HubWorker
from storage.loadable import library_of, list_loadable_files
from storage.manifest import Manifest
from storage.stores import open_store

HUB = "hf://"
HERE = "path/to/this/folder"  #: what the card of files that are not on the Hub says to load
Bars = Callable[[str, int], Progress]


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported, and where its bytes are."""

    mark: CommitMarker
    run: pb.Run
    content: pb.CheckpointPart | pb.Output
    metrics: Mapping[str, float]

    @property
    def title(self) -> str:
        name = short(self.run.name)
        return f"the result of {name}" if self.mark.kind == "result" else f"step {self.mark.step} of {name}"


@dataclass(frozen=True, slots=True)
class Export:
    """What is written: files by their paths, and texts for each place that people may load it from."""

    title: str
    mark: CommitMarker
    files: Mapping[str, Path]
    texts: Callable[[str, str], dict[str, str]]

    def written(self, beside: Path) -> dict[str, Path]:
        """All as files; the texts, which come last, are put into a folder of their own. Blocking."""
        beside.mkdir()
        texts = self.texts(HERE, MAIN)
        for path, text in texts.items():
            (beside / path).write_text(text)
        return {**self.files, **{path: beside / path for path in texts}}


#: Writes what was made; what it prepares goes into the folder, which is not there yet.
Write = Callable[[Export, Path, Bars], Awaitable[ExitCode]]


async def export(client: RelayClient, what: str, to: str, terminal: Terminal, *, private: bool) -> ExitCode:
    """Fetches it, every byte verified, and writes what can be loaded."""
    write, beside = await asyncio.to_thread(_destination, to, private=private)
    source = await (_checkpoint(client, what) if "@" in what else _result(client, what))
    with _room(beside) as folder, byte_bars(terminal) as bars:
        await _fetched(client, source, folder / "whole", bars)
        made = await _made(client, source, folder / "whole")
        return await write(made, folder / "texts", bars)


@contextmanager
def _room(beside: Path | None) -> Iterator[Path]:
    """A folder for what is on its way, and one in it that is to be filled; on the file system of where it goes."""
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".relay-export-", dir=beside) as name:
        Path(name, "whole").mkdir()
        yield Path(name)


def _destination(to: str, *, private: bool) -> tuple[Write, Path | None]:
    """What writes there, and where to prepare it, if not just anywhere. Blocking."""
    if to.startswith(HUB):
        repo = to.removeprefix(HUB)
        if not address.HUB_REPO.fullmatch(repo):
            raise UsageMistake(f"--to: {to} names no repository on the Hub; one reads hf://owner/name")
        return partial(_to_hub, repo, private=private), None
    if "://" not in to:
        return _folder(Path(to))
    try:
        place = address.parse_address(to)
    except address.AddressError as error:
        raise UsageMistake(f"--to: {error}; or a folder, or hf://owner/name") from error
    return _folder(Path(place.path)) if place.scheme == "file" else (partial(_to_bucket, place), None)


def _folder(folder: Path) -> tuple[Write, Path]:
    """One that is there must be empty: nothing is overwritten, and nothing of another export stays among the files."""
    if folder.exists() and any(folder.iterdir()):
        raise SendFailed(f"{folder} is not empty; export into a new folder")
    return partial(_to_folder, folder), folder


# Where it comes from


async def _checkpoint(client: RelayClient, point: str) -> Source:
    """Node 0's part is what can be loaded."""
    found = await copies.complete(client, point)
    run = await client.run(found.name.split("/")[1])
    mark = CommitMarker("model", short(run.name), found.attempt, short(found.lease), found.step)
    return Source(mark, run, found.parts[0], found.metrics)


async def _result(client: RelayClient, name: str) -> Source:
    """Marked as its agent marks it, so that what that one has published is known again."""
    run = await client.run(name)
    ended = [each for each in await client.attempts(name) if each.outcome == pb.Attempt.SUCCEEDED]
    if not (run.HasField("output") and ended):
        raise PullFailed(f"{short(run.name)} has no result: it {views.standing(run)}; a checkpoint is RUN@latest")
    step = max(run.progress.step, run.head.step)
    mark = CommitMarker("result", short(run.name), ended[-1].number, short(ended[-1].name), step)
    return Source(mark, run, run.output, run.head.metrics)


async def _fetched(client: RelayClient, source: Source, folder: Path, bars: Bars) -> Manifest:
    progress = bars("fetching", source.content.size)
    if isinstance(source.content, pb.Output):
        return await acting.fetched(client, source.content, folder, progress)
    return await copies.fetched(client, source.content, folder, progress)


async def _made(client: RelayClient, source: Source, folder: Path) -> Export:
    files = await asyncio.to_thread(list_loadable_files, folder)
    if not files:
        raise PullFailed(f"{source.title} has no files")
    facts = model_card.CardFacts(
        run=_run_file(source.run),
        run_id=source.mark.run,
        attempt=source.mark.attempt,
        lease=source.mark.lease,
        step=source.mark.step,
        final=source.mark.kind == "result",
        library=library_of(files),
        files=files.keys(),
        record=await asyncio.to_thread(model_card.read_record, folder),
        digest=source.content.manifest_digest if source.mark.kind == "model" else "",
        metrics=source.metrics,
        inputs={each.path: each.digest for each in source.run.inputs},
        pins=source.run.pins,
        attempts=[_summarize(attempt) for attempt in await client.attempts(source.run.name)],
    )
    return Export(source.title, source.mark, files, partial(model_card.render_texts, facts))


def _summarize(attempt: pb.Attempt) -> model_card.AttemptSummary:
    return model_card.AttemptSummary(
        number=attempt.number,
        hosts=[place.agent.removeprefix("agents/") for place in attempt.places],
        resumed_step=attempt.resumed_step if attempt.resumed_from else None,
        outcome=pb.Attempt.Outcome.Name(attempt.outcome),
    )


def _run_file(run: pb.Run) -> RunFile:
    try:
        return parse_run_file(json_format.MessageToDict(run.spec), supported=False)
    except RunFileErrors as error:
        raise PullFailed(
            f"{short(run.name)} was submitted by another release, whose run file is not known here"
        ) from error


# Where it goes


async def _to_folder(folder: Path, made: Export, beside: Path, bars: Bars) -> ExitCode:
    files = await asyncio.to_thread(made.written, beside)
    total = await asyncio.to_thread(_moved, files, folder)
    say(f"{made.title} is in {folder}: {count(len(files), 'file')}, {size(total)}")
    return ExitCode.OK


def _moved(files: Mapping[str, Path], folder: Path) -> int:
    """Bytes that lie in the folder now. Blocking."""
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        source.rename(folder / path)
    return sum((folder / path).stat().st_size for path in files)


async def _to_bucket(place: address.Address, made: Export, beside: Path, bars: Bars) -> ExitCode:
    files = await asyncio.to_thread(made.written, beside)
    total = sum([(await asyncio.to_thread(source.stat)).st_size for source in files.values()])
    with telling(str(place)):
        open_store(str(place))  # says what is missing where buckets cannot be used
        from storage.bucket_files import put_files

        await put_files(place, files, bars("sending", total))
    say(f"{made.title} is in {place}: {count(len(files), 'file')}, {size(total)}")
    return ExitCode.OK


async def _to_hub(repo: str, made: Export, beside: Path, bars: Bars, *, private: bool) -> ExitCode:
    """One commit, on `main` where that is the run's or nobody's."""
    run = made.mark.run
    try:
        done = await HubWorker(sys.executable, os.environ).run_job(
            "publish_model",
            repo=repo,
            private=private,
            marker=asdict(made.mark),
            files={path: str(source) for path, source in made.files.items()},
            texts={branch: made.texts(repo, branch) for branch in (MAIN, model_branch(run))},
            expected=None,
        )
    except (StoreRefused, DamagedCopy) as refused:
        note(f"{made.title} is not exported: {refused}")
        return ExitCode.REFUSED
    except StoreUnavailable as away:
        note(f"the Hub cannot be reached; try again: {away}")
        return ExitCode.UNREACHABLE
    if done["note"]:
        note(done["note"])
    say(f"{made.title} is at {repo} ({done['branch']}, commit {done['commit'][:8]})")
    return ExitCode.OK
