"""From a checkpoint or a result to what is sent: its loadable files, its picture, its card."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent.events.journal import Journal
from agent.folder import AttemptFolder
from agent.hub import facts, merging
from agent.hub.publication import Model, Parcel
from agent.wire import Assignment
from relay.loadable import is_adapter, is_model, loadable
from relay.manifest import list_files
from relay.runfile import Hub, RunFile
from relay.stores.hub import card

CURVE = "curve.png"
MERGED = "merged"  #: the folder of a merged model beside its adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """For one attempt. `environment` is what its processes get."""

    hub: Hub
    run: RunFile
    assignment: Assignment
    folder: AttemptFolder
    known: facts.Facts
    journal: Journal
    python: str
    environment: Mapping[str, str]

    async def __call__(self, published: Model) -> Parcel:
        files = await asyncio.to_thread(_files, published.folder)
        merged, check = await self._merged(published, files)
        if merged and self.hub.push == "merged":
            files = merged
        elif merged:
            files |= {f"{MERGED}/{name}": path for name, path in merged.items()}
        if picture := await self._picture():
            files[CURVE] = picture
        told = await asyncio.to_thread(_told, published.folder)
        tell = await self._facts(published, files, told, check)
        return Parcel({name: str(path) for name, path in files.items()}, partial(self._texts, tell, told))

    def _texts(self, tell: card.Facts, told: Mapping[str, Any], branch: str) -> dict[str, str]:
        return {"README.md": card.card(tell, self.hub.repo, branch), "relay.json": card.relay_json(tell, told)}

    async def _facts(
        self, published: Model, files: Mapping[str, Path], told: Mapping[str, Any], check: str
    ) -> card.Facts:
        pins = dict(self.assignment.message.pins)
        if told.get("revision"):
            pins["model"] = str(told["revision"])
        return card.Facts(
            run=self.run,
            run_id=self.assignment.run_id,
            attempt=self.assignment.attempt,
            lease=self.assignment.lease_id,
            step=published.step,
            final=published.final,
            adapter=is_adapter(files),
            merged=f"{MERGED}/config.json" in files,
            loads=is_model(files),
            digest=published.digest,
            metrics=published.metrics,
            data=self.known.data(self.run),
            pins=pins,
            attempts=await self.known.attempts(),
            versions=_versions(told),
            curve=CURVE in files,
            check=check,
        )

    async def _merged(self, published: Model, files: Mapping[str, Path]) -> tuple[dict[str, Path], str]:
        """The merged model of a result, where that is wished and can be had, and what its check said."""
        if not published.final or self.hub.push == "adapter" or not is_adapter(files):
            return {}, ""
        into = self.folder.merged
        merge = merging.merge(
            self.python,
            self.environment,
            adapter=published.folder,
            run_file=self.folder.run_file,
            cwd=self.folder.work / self.run.workdir,
            into=into,
        )
        try:
            check = await merge
        except merging.MergeFailed as error:
            await self.journal.say("error", f"the adapter is published unmerged: {error}")
            return {}, ""
        return await asyncio.to_thread(_files, into), check

    async def _picture(self) -> Path | None:
        """The curve drawn, where that can be done."""
        series = await self.known.curve()
        target = self.folder.path / CURVE
        process = await asyncio.create_subprocess_exec(
            *(self.python, "-m", "agent.hub.curve", str(target)),
            env={**self.environment, "MPLBACKEND": "agg"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await process.communicate(json.dumps(series).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return target if process.returncode == 0 else None


def _files(folder: Path) -> dict[str, Path]:
    """Those to load it from, by their paths. Blocking."""
    paths = (path.relative_to(folder).as_posix() for path in list_files(folder))
    return {path: folder / path for path in loadable(paths)}


def _told(folder: Path) -> dict[str, Any]:
    """What the trainer wrote of its result; a program's own file of that name may say anything."""
    try:
        told = json.loads((folder / "relay.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _versions(told: Mapping[str, Any]) -> dict[str, str]:
    versions = told.get("versions")
    return {str(name): str(version) for name, version in versions.items()} if isinstance(versions, dict) else {}
