"""Resolves `model.init_from`: the weights of another run, which a run starts with, looked up once, at submission.

Their files become inputs of the new run, by content, so that it no longer depends on the other run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from coordinator.database.connections import Database
from coordinator.database.tables import Run
from coordinator.store import checkpoints, queries
from coordinator.store.queries import RunView
from relay.errors import BlobUnknown, DigestMismatch, RunUnknown, SpecInvalid
from runfile import INIT_BASE, INIT_FROM
from storage.checkpoint_ref import CheckpointNotFound, CheckpointRef, choose_checkpoint
from storage.loadable import describe_missing_weights, is_adapter, select_loadable
from storage.manifest import MAX_BYTES, Manifest, ManifestError
from storage.threads import in_thread

PIN = "init_from"  #: the pin: the name of the weights and the digest of their manifest
Inputs = tuple[Mapping[str, Any], ...]


class ManifestReader(Protocol):
    """The artifact store, as far as it is needed here. Blocking."""

    def read(self, digest: str, limit: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """What a run starts with: files in addition to its own inputs, and the pins that name them."""

    inputs: Inputs = ()
    pins: Mapping[str, str] = field(default_factory=dict)


def requested(spec: Mapping[str, Any]) -> str:
    """Return what a checked run file asks for, e.g. `runs/x@best`; empty for a run without `model.init_from`."""
    return (spec.get("model") or {}).get("init_from") or ""


async def resolve_weights(
    db: Database, blobs: ManifestReader, what: str, inputs: Sequence[Mapping[str, Any]]
) -> InitialWeights:
    """Return the weights that a run file asks for, beside the inputs that it has. SpecInvalid says why they cannot be
    used.
    """
    require_room(what, inputs)
    point = CheckpointRef.parse(what)
    async with db.begin() as connection:
        try:
            source = await queries.read_run(connection, point.run)
        except RunUnknown as unknown:
            raise _refuse(what, str(unknown)) from unknown
    label, digest = await _find_manifest(db, source, point, what)
    manifest = await _read_manifest(blobs, digest, what)
    names = set(select_loadable(file.path for file in manifest.files))
    if missing := describe_missing_weights(names):
        raise _refuse(what, f"{label} holds no model that could be loaded ({missing})")
    files = [_input(INIT_FROM, file.path, file.digest, file.size) for file in manifest.files if file.path in names]
    base = _find_base(source) if is_adapter(names) else ()
    return InitialWeights((*files, *base), {PIN: f"{label} {digest}"})


def require_room(what: str, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Raise SpecInvalid when an input lies where the weights will be put."""
    if taken := [each["path"] for each in inputs if _is_below(INIT_FROM, each)]:
        raise _refuse(what, f"{taken[0]} is in the way: {INIT_FROM}/ must be free for its files")


async def find_earlier_weights(db: Database, what: str, run_id: str) -> InitialWeights | None:
    """Return the weights that an existing run already has by the same request; None when it has none."""
    async with db.begin() as connection:
        try:
            run = (await queries.read_run(connection, run_id)).run
        except RunUnknown:
            return None
    if requested(run.spec) != what or PIN not in run.pins:
        return None
    return InitialWeights(tuple(each for each in _inputs(run) if _is_below(INIT_FROM, each)), {PIN: run.pins[PIN]})


async def _find_manifest(db: Database, source: RunView, point: CheckpointRef, what: str) -> tuple[str, str]:
    """Return the name of the weights, for users, and the digest of their manifest, whose files are in the artifact
    store.
    """
    if not point.which:
        output = source.run.output
        if output is None:
            raise _refuse(what, f"{point.run} is {source.run.state} and has no result; {point.run}@latest is its head")
        if output.get("uri"):
            raise _refuse(
                what, f"its result is in {output['uri']}, out of the coordinator's reach; {_push_hint(point.run)}"
            )
        return f"runs/{point.run}", output["manifest_digest"]
    async with db.connection() as conn:
        found = await checkpoints.list_of_run(conn, point.run, superseded=True, removed=False)
    try:
        chosen = choose_checkpoint(point.which, [each for each in found if each.complete], source.run.spec)
    except CheckpointNotFound as none:
        raise _refuse(what, f"{point.run} has {none}") from none
    part = chosen.parts[0]
    if not any(copy.store == "relay" and copy.remove_time is None for copy in part.copies):
        where = ", ".join(sorted({copy.store for copy in part.copies})) or "nowhere"
        hint = _push_hint(f"{point.run}@{chosen.step}")
        raise _refuse(what, f"step {chosen.step} has no copy in the coordinator's store (only {where}); {hint}")
    return f"runs/{point.run}@{chosen.step}", part.manifest_digest


async def _read_manifest(blobs: ManifestReader, digest: str, what: str) -> Manifest:
    try:
        return Manifest.from_bytes(await in_thread(blobs.read, digest, MAX_BYTES))
    except (BlobUnknown, DigestMismatch, ManifestError) as error:
        raise _refuse(what, f"its manifest cannot be read: {error}") from error


def _find_base(source: RunView) -> Inputs:
    """Return the base model of an adapter if it was uploaded with the run that made the adapter; otherwise the Hub has
    it.

    A run that started with an adapter continued it, on the base of that adapter; one that started with a whole model
    used that as its base.
    """
    model = source.run.spec.get("model") or {}
    folders = (
        [INIT_BASE, INIT_FROM]
        if requested(source.run.spec)
        else [(model.get("name_or_path") or "").removeprefix("./").rstrip("/")]
    )
    for folder in filter(None, folders):
        files = [each for each in _inputs(source.run) if _is_below(folder, each)]
        if files and not is_adapter([each["path"].removeprefix(f"{folder}/") for each in files]):
            return tuple(
                _input(INIT_BASE, each["path"].removeprefix(f"{folder}/"), each["digest"], each["size"])
                for each in files
            )
    return ()


def _inputs(run: Run) -> list[Mapping[str, Any]]:
    return cast("list[Mapping[str, Any]]", run.inputs)


def _input(folder: str, path: str, digest: str, size: int) -> Mapping[str, Any]:
    return {"path": f"{folder}/{path}", "digest": digest, "size": size, "executable": False}


def _is_below(folder: str, entry: Mapping[str, Any]) -> bool:
    return str(entry["path"]).startswith(f"{folder}/")


def _push_hint(point: str) -> str:
    return f"bring it: relayctl push {point if '@' in point else f'{point}@latest'} --to relay://"


def _refuse(what: str, why: str) -> SpecInvalid:
    return SpecInvalid(f'model.init_from: "{what}" cannot be used: {why}')
