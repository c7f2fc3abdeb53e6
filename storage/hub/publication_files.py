"""What is published of a folder: the files to load it from, its card, and `relay.json`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relay.v1 import runs_pb2
from runfile import RunFile
from storage.hub import card
from storage.hub.card import Facts, Tried
from storage.hub.commit_markers import Mark
from storage.loadable import is_adapter, is_model, loadable
from storage.manifest import list_files

CURVE = "curve.png"
MERGED = "merged"  #: the folder of a merged model beside its adapter
_ENDS = {
    runs_pb2.Attempt.SUCCEEDED: "succeeded",
    runs_pb2.Attempt.STOPPED: "stopped",
    runs_pb2.Attempt.FAILED: "failed",
    runs_pb2.Attempt.FAULTED: "lost its host",
}


def files_of(folder: Path) -> dict[str, Path]:
    """Those to load it from, by their paths. Blocking."""
    paths = (path.relative_to(folder).as_posix() for path in list_files(folder))
    return {path: folder / path for path in loadable(paths)}


def told_of(folder: Path) -> dict[str, Any]:
    """What the trainer wrote of its result; a program's own file of that name may say anything. Blocking."""
    try:
        told = json.loads((folder / "relay.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def facts(
    mark: Mark,
    run: RunFile,
    files: Collection[str],
    told: Mapping[str, Any],
    *,
    digest: str,
    metrics: Mapping[str, float],
    inputs: Iterable[runs_pb2.Input],
    pins: Mapping[str, str],
    attempts: Iterable[runs_pb2.Attempt],
    check: str = "",
) -> Facts:
    """All that a card tells; `check` is what that of the merged model said."""
    return Facts(
        run=run,
        run_id=mark.run,
        attempt=mark.attempt,
        lease=mark.lease,
        step=mark.step,
        final=mark.kind == "result",
        adapter=is_adapter(files),
        merged=f"{MERGED}/config.json" in files,
        loads=is_model(files),
        digest=digest,
        metrics=metrics,
        data=_data(run, inputs),
        pins={**pins, **({"model": str(told["revision"])} if told.get("revision") else {})},
        attempts=_tried(attempts),
        versions=_versions(told),
        curve=CURVE in files,
        check=check,
        base=str(told["model"]) if isinstance(told.get("model"), str) else "",
    )


def texts(known: Facts, told: Mapping[str, Any], repo: str, branch: str) -> dict[str, str]:
    """What Relay writes beside the files, by paths; `repo` and `branch` are where people load it from."""
    return {"README.md": card.card(known, repo, branch), "relay.json": card.relay_json(known, told)}


def _data(run: RunFile, inputs: Iterable[runs_pb2.Input]) -> dict[str, str]:
    """Digests of the data's files that travelled."""
    names = [source.path or "" for source in (run.data.train if run.data else ())]
    held_out = run.data.eval if run.data else None
    names += [source.path or "" for source in held_out] if isinstance(held_out, tuple) else []
    wanted = {name.removeprefix("./") for name in names}
    return {each.path: each.digest for each in inputs if each.path in wanted}


def _tried(attempts: Iterable[runs_pb2.Attempt]) -> Sequence[Tried]:
    return [
        Tried(
            number=attempt.number,
            host=", ".join(place.agent.removeprefix("agents/") for place in attempt.places),
            resumed_step=attempt.resumed_step if attempt.resumed_from else None,
            outcome=_ENDS.get(attempt.outcome, "goes on"),
        )
        for attempt in attempts
    ]


def _versions(told: Mapping[str, Any]) -> dict[str, str]:
    versions = told.get("versions")
    return {str(name): str(version) for name, version in versions.items()} if isinstance(versions, dict) else {}
