"""The commands that change something: submit, cancel, pause, resume, pull."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

from relay.v1 import runs_pb2 as pb
from relayctl.client import submission
from relayctl.client.artifacts import PullFailed
from relayctl.client.channel import Unreachable
from relayctl.client.client import ENDED, RelayClient, short
from relayctl.client.copies import readers
from relayctl.commands.exits import ExitCode
from relayctl.commands.watch import watch as watch_run
from relayctl.output import views
from relayctl.output.format import block, count, printable, size
from relayctl.output.plan import hub_words
from relayctl.output.serialize import Output, plain, single
from relayctl.output.terminal import Terminal, byte_bars, note, say
from runfile import INIT_FROM, presets
from storage.base import DamagedCopy, Progress, StoreRefused, StoreUnavailable
from storage.manifest import MANIFEST_FILE, Manifest

_QUIET = (Output.NAME, Output.JSON, Output.JSONL, Output.YAML)


async def submit(
    client: RelayClient,
    path: Path,
    terminal: Terminal,
    output: Output,
    *,
    sets: Sequence[str],
    name: str | None,
    dry_run: bool,
    watch: bool,
) -> ExitCode:
    """Plans a run, shows the plan, and unless it is a rehearsal creates it."""
    prepared = await submission.prepare(path, sets, name)
    try:
        checked = await submission.check(client, prepared)
    except Unreachable:
        if dry_run and output not in _QUIET:
            say(_plan(prepared, None))
        raise
    if output not in _QUIET:
        say(_plan(prepared, checked))
    if dry_run:
        if output in _QUIET:
            say(_result(checked, output))
        return ExitCode.OK
    with byte_bars(terminal) as bars:
        created = await submission.submit(client, prepared, bars)
    say(_result(created, output))
    return await watch_run(client, created.run.name, terminal) if watch else ExitCode.OK


def _plan(prepared: submission.Submission, checked: pb.CreateRunResponse | None) -> str:
    entries = views.spec_block(prepared.runfile, str(prepared.path))
    entries.append(("hub", hub_words(prepared.runfile, _weights(prepared))))
    entries += [
        ("preset", line.removeprefix("preset ")) for line in presets.describe_presets(prepared.runfile.to_dict())
    ]
    entries.append(("travels", submission.travel_words(prepared)))
    if checked is not None and (found := checked.run.pins.get("init_from")):
        entries.append(("begins with", _beginning_words(found, checked.run.inputs)))
    placement = "not known: the coordinator does not answer" if checked is None else printable(checked.placement)
    return block([*entries, ("placement", placement)])


def _weights(prepared: submission.Submission) -> int | None:
    """Bytes of the weights that travel; None when the model is elsewhere."""
    sizes = [travel.source.stat().st_size for travel in prepared.files if travel.path.endswith(".safetensors")]
    return sum(sizes) if sizes else None


def _beginning_words(found: str, inputs: Sequence[pb.Input]) -> str:
    """Another run's weights, which the coordinator has."""
    files = [each for each in inputs if each.path.startswith(f"{INIT_FROM}/")]
    return f"{found.partition(' ')[0]}: {count(len(files), 'file')}, {size(sum(each.size for each in files))}"


def _result(created: pb.CreateRunResponse, output: Output) -> str:
    name = short(created.run.name)
    if output is Output.NAME:
        return name
    if output in _QUIET:
        return single(plain(created), output)
    if created.created:
        return f"\nsubmitted {name}; watch it with: relayctl watch {name}"
    again = "; to run it again: --name ANOTHER" if created.run.state in ENDED else ""
    return f"\n{name} had been submitted already and it {views.standing(created.run)}; nothing new was started{again}"


async def told(verb: Awaitable[pb.Run], output: Output) -> ExitCode:
    """Carries out a verb on a run and says where the run stands then."""
    run = await verb
    if output is Output.NAME:
        say(short(run.name))
    elif output in _QUIET:
        say(single(plain(run), output))
    else:
        say(f"{short(run.name)} {views.standing(run)}")
    return ExitCode.OK


async def pull(client: RelayClient, run: str, folder: Path, terminal: Terminal) -> ExitCode:
    """Fetches the run's result into a folder, every file verified."""
    found = await client.run(run)
    if not found.HasField("output"):
        raise PullFailed(f"{short(found.name)} has no output: it {views.standing(found)}")
    with byte_bars(terminal) as bars:
        content = await fetched(client, found.output, folder, bars("fetching", found.output.size))
    files = content.files
    say(f"{count(len(files), 'file')}, {size(content.size)}, verified, in {folder}")
    if not files:
        note("the run published no files")
    return ExitCode.OK


async def fetched(client: RelayClient, output: pb.Output, folder: Path, progress: Progress) -> Manifest:
    """A result, from where it lies."""
    if output.uri:
        return await _from_store(output, folder, progress)
    content = await client.artifacts.contents(output.manifest_digest)
    await client.artifacts.pull(content, folder, progress)
    return content


async def _from_store(output: pb.Output, folder: Path, progress: Progress) -> Manifest:
    """A result that is not in the coordinator's store; this machine has to reach the other one itself."""
    taken = await asyncio.to_thread((folder / MANIFEST_FILE).exists)
    if taken:
        raise PullFailed(f"{folder / MANIFEST_FILE} is in the way: pull into another folder")
    try:
        store = readers().get(output.uri.partition("://")[0])
        if store is None:
            raise StoreRefused("such a store cannot be read here")
        content = await store.fetch(output.uri, output.manifest_digest, folder, progress)
    except (StoreUnavailable, StoreRefused, DamagedCopy) as error:
        raise PullFailed(f"the result in {output.uri} cannot be fetched: {error}") from error
    await asyncio.to_thread((folder / MANIFEST_FILE).unlink)
    return content
