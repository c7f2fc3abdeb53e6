"""From a checkpoint or a result to the content of a commit: its loadable files, its picture, its card."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.events.journal import Journal
from agent.folder import AttemptFolder
from agent.hub.facts import RunHistory
from agent.hub.publication import CommitContent, PublishableModel
from agent.wire import Assignment
from runfile import HubSection, RunFile, model_card
from storage.hub.commit_markers import CommitMarker, MarkerKind
from storage.loadable import is_adapter, library_of, list_loadable_files


def make_mark(assignment: Assignment, model: PublishableModel) -> CommitMarker:
    """Return the marker by which a commit says which checkpoint or result it holds."""
    kind: MarkerKind = "result" if model.final else "model"
    return CommitMarker(kind, assignment.run_id, assignment.attempt, assignment.lease_id, model.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packer:
    """Packs commits for one attempt. `environment` is that of its processes."""

    hub: HubSection
    run: RunFile
    assignment: Assignment
    folder: AttemptFolder
    history: RunHistory
    journal: Journal
    python: str
    environment: Mapping[str, str]

    async def __call__(self, published: PublishableModel) -> CommitContent:
        files = await asyncio.to_thread(list_loadable_files, published.folder)
        merged, check = await self._merge(published, files)
        if merged and self.hub.push == "merged":
            files = merged
        elif merged:
            files |= {f"{model_card.MERGED_FOLDER}/{name}": path for name, path in merged.items()}
        if picture := await self._draw_curve():
            files[model_card.CURVE_FILE] = picture
        facts = await self._facts(published, files, check)
        texts = partial(model_card.render_texts, facts, self.hub.repo)
        return CommitContent({name: str(path) for name, path in files.items()}, texts)

    async def _facts(self, published: PublishableModel, files: Mapping[str, Path], check: str) -> model_card.CardFacts:
        return model_card.CardFacts(
            run=self.run,
            run_id=self.assignment.run_id,
            attempt=self.assignment.attempt,
            lease=self.assignment.lease_id,
            step=published.step,
            final=published.final,
            library=library_of(files),
            files=files.keys(),
            record=await asyncio.to_thread(model_card.read_record, published.folder),
            digest=published.digest,
            metrics={**published.metrics, **await self.history.read_evaluation(published.step)},
            inputs={each.path: each.digest for each in self.assignment.message.inputs},
            pins=self.assignment.message.pins,
            attempts=await self.history.list_attempts(),
            check=check,
        )

    async def _merge(self, published: PublishableModel, files: Mapping[str, Path]) -> tuple[dict[str, Path], str]:
        """Return the merged model of a result, where it is asked for and can be made, and what its check said."""
        if not published.final or self.hub.push == "adapter" or not is_adapter(files):
            return {}, ""
        into = self.folder.merged
        merging = merge_adapter(
            self.python,
            self.environment,
            adapter=published.folder,
            run_file=self.folder.run_file,
            cwd=self.folder.work / self.run.workdir,
            into=into,
        )
        try:
            check = await merging
        except MergeFailed as error:
            await self.journal.record("error", f"the adapter is published unmerged: {error}")
            return {}, ""
        return await asyncio.to_thread(list_loadable_files, into), check

    async def _draw_curve(self) -> Path | None:
        """Return the picture of the curve, where it can be drawn."""
        series = await self.history.read_curve()
        target = self.folder.path / model_card.CURVE_FILE
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


class MergeFailed(Exception):
    """The adapter cannot be merged, and why."""


async def merge_adapter(
    python: str, environment: Mapping[str, str], *, adapter: Path, run_file: Path, cwd: Path, into: Path
) -> str:
    """Merge an adapter into its base model, in a process, into a folder of its own, and return what the check said."""
    process = await asyncio.create_subprocess_exec(
        *(
            python,
            "-m",
            "trainers.merge",
            str(adapter),
            str(into),
            "--run-file",
            str(run_file),
            "--until-stdin-ends",
        ),
        cwd=cwd,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdin=asyncio.subprocess.PIPE,  # it ends when we do
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = (await process.stdout.read()).decode(errors="replace").strip()
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last = said.rpartition("\n")[2]
    if code:
        raise MergeFailed(last or f"it ended with {code}")
    return last
